"""Commands that learn: run, train, select, recommend, evaluate, report."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from frugalrec.cli import options
from frugalrec.cli.data import data_overrides

Models = Annotated[list[str] | None, typer.Option("--model", help="A cheap model; repeat for more.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Any field of the configuration, e.g. tuning.epochs=3."
    ),
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="A YAML configuration.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    for command in (run, train, select, recommend, evaluate, report):
        app.command()(command)


def settings(pairs: list[str] | None) -> dict[str, Any]:
    """Turn ``["tuning.epochs=3"]`` into ``{"tuning.epochs": 3}``; values are read as YAML."""
    import yaml

    pieces = options.mapping(pairs, "--set")
    return {field: yaml.safe_load(value) for field, value in pieces.items()}


def run(
    source: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="A file, a folder, or film-club (simulated; the default)."),
    ] = None,
    config: ConfigFile = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="An embedded model, folder, Hugging Face id, or none.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The run's folder; a killed run goes on there.")] = Path(
        "runs/latest"
    ),
    llm_users: Annotated[
        int | None, typer.Option("--llm-users", help="At most so many test users get the LLM.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help='The most the LLM may cost: "300 users", "20%", "1M tokens", "2 USD".'),
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", help="Who gets the LLM: random, gain-per-cost, all, ...")
    ] = None,
    model: Models = None,
    format: Annotated[
        str | None, typer.Option("--format", help="Reader; auto recognises most formats.")
    ] = None,
    column: options.Columns = None,
    items: options.Items = None,
    item_column: options.ItemColumns = None,
    encoding: Annotated[str | None, typer.Option("--encoding", help="Text encoding of CSV files.")] = None,
    time_unit: Annotated[
        str | None, typer.Option("--time-unit", help="Unit of the time column: auto, s or ms.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="auto, time, user-time, leave-last-out or given.")
    ] = None,
    allow: options.Allow = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of every random stream.")] = None,
    set_: Settings = None,
    as_json: options.AsJson = False,
) -> None:
    """Run the whole chain on a data set, and write a report of quality against cost."""
    from rich.console import Console

    from frugalrec import config as configuration
    from frugalrec.cli.progress import StageBars
    from frugalrec.pipeline import run_pipeline
    from frugalrec.reporting.tables import terminal_table

    overrides = {
        **data_overrides(source, format, column, items, item_column, encoding, time_unit),
        "data.split": split,
        "data.allow": allow,
        "llm.model": llm,
        "allocation.budget_users": llm_users,
        "recommenders.names": model,
        "seed": seed,
        **settings(set_),
    }
    chosen = configuration.load(config, overrides)
    quiet = as_json and not sys.stderr.isatty()
    with nullcontext() if quiet else StageBars() as bars:
        result = run_pipeline(chosen, out, observer=bars, command=shlex.join(["frugalrec", *sys.argv[1:]]))
    if as_json:
        options.show_json(result.to_dict())
        return
    console = Console()
    console.print(terminal_table(result))
    for sentence in result.verdict:
        console.print(sentence, highlight=False)
    console.print(f"\nThe report: {out / 'report.html'}", highlight=False, soft_wrap=True)


def train(
    source: options.Source,
    model: Annotated[str, typer.Option("--model", help="Which model to fit.")] = "ease",
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")] = Path("models/latest"),
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of the model.")
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
    """Fit one cheap model on all interactions and save it for `recommend`."""
    import yaml

    from frugalrec.cli.data import opened
    from frugalrec.stages.models import train_model

    dataset = opened(source, format, column, items, item_column, encoding, time_unit, seed)
    given = {k: yaml.safe_load(v) for k, v in options.mapping(option, "--option").items()}
    facts = train_model(dataset, model, given, out)
    if as_json:
        options.show_json(facts)
        return
    typer.echo(
        f"{model} fitted on {facts['interactions']:,} interactions in {facts['fit_s']:.1f} s, "
        f"saved in {out}; try: frugalrec recommend {out} --user {facts['example_user']}"
    )


def select(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    budget: Annotated[
        str | None, typer.Option("--budget", help='Rows to keep, such as 1024 or "2%"; default: the run\'s.')
    ] = None,
    scorer: Annotated[
        str,
        typer.Option(
            "--scorer",
            help="dealrec, influence, effort, el2n, grand, ccs, tf-dcon, recranker, random, longest, recent.",
        ),
    ] = "dealrec",
    preset: Annotated[
        str | None, typer.Option("--preset", help="Of dealrec: frugal, paper or reference.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="An option of the scorer.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Choose training samples with another scorer, on the data of a finished run."""
    import yaml

    from frugalrec.cli.progress import StageBars
    from frugalrec.stages.selection import select_from

    given = {k: yaml.safe_load(v) for k, v in options.mapping(option, "--option").items()}
    if preset is not None:
        given["preset"] = preset
    quiet = as_json and not sys.stderr.isatty()
    with nullcontext() if quiet else StageBars() as bars:
        facts = select_from(folder, scorer=scorer, budget=budget, options=given, observer=bars)
    if as_json:
        options.show_json(facts)
        return
    typer.echo(
        f"{scorer} kept {facts['kept']:,} of {facts['rows']:,} rows "
        f"({facts['undefined']:,} without a score); the table: {facts['table']}"
    )
    if "deciles" in facts:
        shares = "  ".join(f"{100 * share:.0f} %" for share in facts["deciles"])
        typer.echo(f"kept rows by decile of the score, lowest first: {shares}")
    if "negative_influence_kept" in facts:
        typer.echo(
            f"rows with negative influence: {100 * facts['negative_influence_kept']:.0f} % of the kept, "
            f"{100 * facts['negative_influence_all']:.0f} % of all"
        )


def recommend(
    folder: Annotated[Path, typer.Argument(help="A folder that run or train wrote.")],
    user: Annotated[list[str] | None, typer.Option("--user", help="A user id; repeat for more.")] = None,
    k: Annotated[int, typer.Option("-k", help="Length of the list.")] = 10,
    model: Annotated[str | None, typer.Option("--model", help="Which model of a run.")] = None,
    llm: Annotated[bool, typer.Option("--llm", help="Re-rank with the run's tuned LLM.")] = False,
    student: Annotated[
        Path | None, typer.Option("--student", help="Re-rank with this distilled prompt; see distil.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Recommend items to users, from a run or a trained model."""
    from frugalrec.stages.models import recommend_from

    lists = recommend_from(folder, user or [], k=k, model=model, llm=llm, student=student)
    if as_json:
        options.show_json(lists)
        return
    for entry in lists:
        typer.echo(f"user {entry['user']} (last seen: {'; '.join(entry['history'][-3:]) or 'nothing'})")
        for rank, item in enumerate(entry["items"], start=1):
            typer.echo(f"  {rank:2}. {item['title']}  [{item['item']}]  {item['score']:.4g}")


def evaluate(
    source: options.Source,
    model: Models = None,
    metric: Annotated[list[str] | None, typer.Option("--metric", help="Such as ndcg@10; repeat.")] = None,
    fold: Annotated[str, typer.Option("--fold", help="valid or test.")] = "test",
    format: options.Format = "auto",
    column: options.Columns = None,
    items: options.Items = None,
    item_column: options.ItemColumns = None,
    encoding: options.Encoding = "utf-8",
    time_unit: options.TimeUnit = "auto",
    split: options.SplitName = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Fit cheap models and compare them on held-out interactions, with intervals."""
    from frugalrec.cli.data import opened
    from frugalrec.stages.models import compare_models

    dataset = opened(source, format, column, items, item_column, encoding, time_unit, seed)
    names = model or ["popularity", "markov", "ease"]
    metrics = metric or ["ndcg@10", "recall@10"]
    rows = compare_models(dataset, names, metrics, fold=fold, split_method=split)
    if as_json:
        options.show_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for heading in ("model", "users", *metrics, "fit s", "ms/user"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        cells = [f"{v['mean']:.4f} [{v['low']:.4f}, {v['high']:.4f}]" for v in row["metrics"].values()]
        table.add_row(
            row["model"], str(row["users"]), *cells, f"{row['fit_s']:.2f}", f"{row['ms_per_user']:.3f}"
        )
    Console().print(table)


def report(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    as_json: options.AsJson = False,
) -> None:
    """Write a finished run's report again (HTML, Markdown, JSON), and show it."""
    from rich.console import Console

    from frugalrec.reporting import write
    from frugalrec.reporting.tables import terminal_table
    from frugalrec.stages.results import load_report

    document = load_report(folder)
    if as_json:
        options.show_json(document.to_dict())
        return
    write(document, folder)
    Console().print(terminal_table(document))
    typer.echo(f"The report: {folder / 'report.html'}")
