"""Commands on adapters: tune one, and verify, merge or export it."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from frugalrec.cli import options
from frugalrec.cli.data import data_overrides
from frugalrec.cli.runs import settings

AdapterFolder = Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder.")]
Base = Annotated[
    str | None, typer.Option("--llm", help="The base model; default: the one that the adapter names.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(tune)
    group = typer.Typer(help="Check, merge and pack up tuned adapters.", no_args_is_help=True)
    group.command()(verify)
    group.command()(merge)
    group.command()(export)
    app.add_typer(group, name="adapter")


def tune(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Yes/no prompts (JSON), a data set, or a finished run's folder."
        ),
    ],
    task: Annotated[
        str, typer.Option("--task", help="yes-no (will they like it?) or next-title (write the next item).")
    ] = "yes-no",
    llm: Annotated[
        str | None,
        typer.Option("--llm", help="A model's name, folder or id; default: smollm2-135m, or the run's own."),
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", help="Rows to tune on; default: 64 yes-no, 1024 next-title.")
    ] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced/--plain", help="Draw as many Yes as No, or rows as they come.")
    ] = False,
    validation: Annotated[
        Path | None, typer.Option("--validation", help="Yes/no prompts to validate on; default: from SOURCE.")
    ] = None,
    validation_rows: Annotated[
        int | None,
        typer.Option(
            "--validation-rows",
            help="Rows that choose among the epochs; default: all of --validation, or none.",
        ),
    ] = None,
    instruct: Annotated[
        Path | None,
        typer.Option("--instruct", metavar="FILE", help="A first stage on instructions (Alpaca's JSON)."),
    ] = None,
    instruct_rows: Annotated[
        int | None, typer.Option("--instruct-rows", help="So many of them, drawn at random; default: all.")
    ] = None,
    style: Annotated[
        str | None, typer.Option("--style", help="Yes/no prompts: rated (default), plain, alpaca or chat.")
    ] = None,
    noun: Annotated[
        str | None, typer.Option("--noun", help="What one item is: film, book; default: guessed.")
    ] = None,
    window: Annotated[
        int | None, typer.Option("--window", help="History titles shown, for next-title; default: 10.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (bfloat16 where the hardware has it), float32 or bfloat16.")
    ] = "auto",
    out: Annotated[
        Path, typer.Option("--out", help="The adapter's folder; a killed call goes on there.")
    ] = Path("adapters/latest"),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="An option such as epochs=5; instruct.epochs=1."),
    ] = None,
    report_to: Annotated[
        list[str] | None, typer.Option("--report-to", help="tensorboard, wandb or mlflow; repeat for more.")
    ] = None,
    format: options.Format = "auto",
    column: options.Columns = None,
    items: options.Items = None,
    item_column: options.ItemColumns = None,
    encoding: options.Encoding = "utf-8",
    time_unit: options.TimeUnit = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Tune an LLM on a few rows, and keep the adapter only if it answers the same after reloading."""
    from frugalrec import config
    from frugalrec.cli.progress import StageBars
    from frugalrec.stages.tuning import TuneRequest, tune_adapter

    overrides = data_overrides(source, format, column, items, item_column, encoding, time_unit)
    request = TuneRequest(
        source=source,
        task=task,  # type: ignore[arg-type]
        out=out,
        model=llm,
        dtype=dtype,  # type: ignore[arg-type]
        shots=shots,
        balanced=balanced,
        validation=None if validation is None else str(validation),
        validation_rows=validation_rows,
        instruct=None if instruct is None else str(instruct),
        instruct_rows=instruct_rows,
        style=style,  # type: ignore[arg-type]
        noun=noun,
        window=window,
        data=config.load(None, overrides).data,
        settings=settings(set_),
        report_to=tuple(report_to or ()),
        seed=seed,
    )
    speaks = os.environ.get("RANK", "0") == "0"  # one of several that accelerate launch may have started
    quiet = not speaks or (as_json and not sys.stderr.isatty())
    with nullcontext() if quiet else StageBars() as bars:
        facts = tune_adapter(request, bars)
    if not speaks:
        return
    if as_json:
        options.show_json(facts)
        return
    chosen = "" if facts["best_epoch"] is None else f", epoch {facts['best_epoch']} chosen on validation"
    typer.echo(
        f"{facts['base']} tuned on {facts['rows']:,} rows, {facts['samples_per_second']:.3g} rows/s{chosen}; "
        f"loss {facts['first_loss']:.3f} -> {facts['last_loss']:.3f}"
    )
    typer.echo(f"the adapter is in {facts['adapter']}, SHA-256 {facts['sha256'][:16]}...")


def verify(adapter: AdapterFolder, llm: Base = None, as_json: options.AsJson = False) -> None:
    """Check an adapter's files, hashes, matrices, base model and answers; exit code 2 at a flaw."""
    from frugalrec.tuning.integrity import verify as check

    found = check(adapter, _loaded(llm)).to_dict()
    if as_json:
        options.show_json(found)
        return
    asked = (
        f"{found['probes']} probes differ by at most {found['difference']:.2g}"
        if found["probes"]
        else "it has no manifest, so its answers were not compared"
    )
    typer.echo(f"{adapter} is whole: {found['matrices']} matrices fit {found['base']}; {asked}")
    typer.echo(f"SHA-256 {found['sha256']}")


def merge(
    adapter: AdapterFolder,
    out: Annotated[Path, typer.Option("--out", help="The Hugging Face folder to write.")],
    llm: Base = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Merge an adapter into its base model: a plain Hugging Face folder with the same answers."""
    from frugalrec.tuning.deliver import merge as write
    from frugalrec.tuning.integrity import base_of

    difference = write(_loaded(llm, dtype) or base_of(adapter, dtype), adapter, out)
    if as_json:
        options.show_json({"folder": str(out), "difference": difference})
        return
    typer.echo(f"{out} answers as base and adapter do (log-probabilities differ by {difference:.2g})")


def export(
    adapter: AdapterFolder,
    out: Annotated[Path, typer.Option("--out", help="A new folder, or a file that ends in .zip.")],
    as_json: options.AsJson = False,
) -> None:
    """Pack up an adapter for elsewhere: what PEFT loads, the manifest, and SHA-256 of all files."""
    from frugalrec.tuning.deliver import export as pack

    names = pack(adapter, out)
    if as_json:
        options.show_json({"out": str(out), "files": names})
        return
    typer.echo(f"{out} holds {', '.join(names)}")


def _loaded(llm: str | None, dtype: str = "auto") -> Any:
    if llm is None:
        return None
    from frugalrec.llm.local import LocalLM

    return LocalLM.load(llm, dtype=dtype)  # type: ignore[arg-type]
