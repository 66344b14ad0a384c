"""The command distil: words of a tuned prompt become learned vectors."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from frugalrec.cli import options
from frugalrec.cli.data import data_overrides
from frugalrec.cli.runs import settings


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(distil)
    app.command("export")(export)


def distil(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A finished run's folder, or an adapter's with --data.")
    ],
    vectors: Annotated[int, typer.Option("--prompt-vectors", help="Vectors that stand for the words.")] = 10,
    mode: Annotated[
        str, typer.Option("--mode", help="vectors, lora (vectors and LoRA matrices) or prefix-kv.")
    ] = "vectors",
    head: Annotated[
        str | None,
        typer.Option(
            "--head", help="items: one pass that scores the catalogue; it asks in words, without vectors."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="For an adapter: a prompt file (yes-no) or a data set (next-title)."),
    ] = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="The base model; default: what SOURCE names.")
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option("--prompts", help="Prompts to learn from; default: 128, for a head 512."),
    ] = None,
    validation_prompts: Annotated[
        int, typer.Option("--validation-prompts", help="Prompts that choose among the epochs.")
    ] = 32,
    dtype: Annotated[
        str, typer.Option("--dtype", help="auto (bfloat16 where the hardware has it), float32 or bfloat16.")
    ] = "auto",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="The student's folder; default: SOURCE/student (a head: SOURCE/head)."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="An option such as epochs=8, start=vocabulary."),
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
    """Distil a tuned prompt into a few learned vectors, and say what that saves."""
    from frugalrec import config
    from frugalrec.cli.progress import StageBars
    from frugalrec.stages.distilling import PROMPTS, DistilRequest, distil_source

    if head is not None:
        if mode != "vectors":
            raise typer.BadParameter("an item head has no vectors of a prompt: leave --mode out.")
        _distil_head(source, head, data, out, llm, dtype, prompts, settings(set_), seed, as_json)
        return
    overrides = data_overrides(data, format, column, items, item_column, encoding, time_unit)
    request = DistilRequest(
        source=source,
        out=source / "student" if out is None else out,
        data=None if data is None else config.load(None, overrides).data,
        model=llm,
        dtype=dtype,  # type: ignore[arg-type]
        prompts=PROMPTS if prompts is None else prompts,
        validation_prompts=validation_prompts,
        vectors=vectors,
        settings={"mode": mode, **settings(set_)},
        seed=seed,
    )
    quiet = as_json and not sys.stderr.isatty()
    with nullcontext() if quiet else StageBars() as bars:
        facts = distil_source(request, bars)
    if as_json:
        options.show_json(facts)
        return
    typer.echo(
        f"{facts['vectors']} vectors learned from {facts['rows']:,} prompts: KL to the words "
        f"{facts['kl_before']:.4f} -> {facts['kl_after']:.4f} nats; the student is in {facts['student']}"
    )
    typer.echo(facts["verdict"])


def _distil_head(
    source: Path,
    head: str,
    data: str | None,
    out: Path | None,
    llm: str | None,
    dtype: str,
    rows: int | None,
    fields: dict[str, Any],
    seed: int,
    as_json: bool,
) -> None:
    from frugalrec.cli.progress import StageBars
    from frugalrec.errors import ConfigError
    from frugalrec.stages.item_heads import ROWS, HeadRequest, distil_head_of

    if head != "items":
        raise ConfigError(f"--head must be items, not {head!r}.")
    if data is not None:
        raise ConfigError(
            "an item head is distilled from a run, which has data of its own; leave --data out."
        )
    request = HeadRequest(
        source=source,
        out=source / "head" if out is None else out,
        model=llm,
        dtype=dtype,  # type: ignore[arg-type]
        rows=ROWS if rows is None else rows,
        settings=fields,
        seed=seed,
    )
    quiet = as_json and not sys.stderr.isatty()
    with nullcontext() if quiet else StageBars() as bars:
        facts = distil_head_of(request, bars)
    if as_json:
        options.show_json(facts)
        return
    gap, low, high = facts["difference"]
    typer.echo(
        f"an item head of the plain model learned from {facts['rows']:,} rows and from "
        f"{facts['teacher'] or 'no teacher'}; it is in {facts['student']}\n"
        f"{facts['metric']} of {facts['users']:,} test users: {facts['value']:.4f}, {facts['first_stage']} "
        f"{facts['first_stage_value']:.4f} (difference {gap:+.4f}, {low:+.4f} to {high:+.4f})\n"
        f"one pass a user: {facts['tokens_per_user']:.0f} tokens, {facts['cpu_ms_per_user']:.0f} ms of CPU, "
        "nothing generated"
    )


def export(
    student: Annotated[Path, typer.Argument(metavar="STUDENT", help="A folder that distil wrote.")],
    out: Annotated[Path, typer.Option("--out", help="The Hugging Face folder to write.")],
    llm: Annotated[
        str | None, typer.Option("--llm", help="The base model; default: what STUDENT names.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16.")] = "float32",
    as_json: options.AsJson = False,
) -> None:
    """Write a distilled model for other servers: adapter merged, vectors as rows of the vocabulary."""
    from frugalrec.distillation.export import export_model
    from frugalrec.distillation.saving import load_student

    lm, prompt = load_student(student, llm, dtype=dtype)
    difference = export_model(lm, out)
    facts = {"folder": str(out), "difference": difference, "learned": prompt.learned}
    if as_json:
        options.show_json(facts)
        return
    typer.echo(f"{out} answers as {student} does (logits differ by {difference:.2g})")
