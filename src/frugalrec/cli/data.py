"""Commands on data: audit, describe, convert, get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from frugalrec.cli import options


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(audit)
    group = typer.Typer(help="Describe, convert and fetch data sets.", no_args_is_help=True)
    group.command()(describe)
    group.command()(convert)
    group.command()(get)
    app.add_typer(group, name="data")


def opened(
    source: str,
    format: str,
    column: list[str] | None,
    items: Path | None,
    item_column: list[str] | None,
    encoding: str,
    time_unit: str,
    seed: int,
) -> Any:
    """Read a data set as the shared options say."""
    from frugalrec import config
    from frugalrec.stages.data import open_dataset

    overrides = data_overrides(source, format, column, items, item_column, encoding, time_unit)
    return open_dataset(config.load(None, overrides).data, seed)


def data_overrides(
    source: str | None,
    format: str | None,
    column: list[str] | None,
    items: Path | None,
    item_column: list[str] | None,
    encoding: str | None,
    time_unit: str | None,
) -> dict[str, Any]:
    """Turn the shared options into configuration overrides."""
    return {
        "data.source": source,
        "data.format": format,
        "data.columns": options.mapping(column, "--column") or None,
        "data.items": str(items) if items else None,
        "data.item_columns": options.mapping(item_column, "--item-column") or None,
        "data.encoding": encoding,
        "data.time_unit": time_unit,
    }


def audit(
    source: options.Source,
    format: options.Format = "auto",
    column: options.Columns = None,
    items: options.Items = None,
    item_column: options.ItemColumns = None,
    encoding: options.Encoding = "utf-8",
    time_unit: options.TimeUnit = "auto",
    split: options.SplitName = "auto",
    allow: options.Allow = None,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Look for leaks and flaws in the data; exit code 1 on an error-level leak."""
    from frugalrec.data.audit import audit as run_audit
    from frugalrec.data.splits import split as cut

    dataset = opened(source, format, column, items, item_column, encoding, time_unit, seed)
    report = run_audit(dataset, cut(dataset, split))  # type: ignore[arg-type]
    if as_json:
        options.show_json(report.to_dict())
    else:
        _show_findings(report)
    report.enforce(allow or [])


def _show_findings(report: Any) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    colours = {"error": "red", "warning": "yellow", "info": "cyan"}
    for finding in report.findings:
        colour = colours[finding.severity]
        console.print(
            f"[{colour}]{finding.severity:7}[/] [bold]{finding.name}[/]  {escape(finding.message)}",
            highlight=False,
        )
        if finding.examples:
            console.print(f"        for example {escape('; '.join(finding.examples))}", highlight=False)
        console.print(f"        {escape(finding.remedy)}", style="dim", highlight=False)
    if not report.findings:
        console.print("no findings: nothing suspicious was found.")


def describe(
    source: options.Source,
    format: options.Format = "auto",
    column: options.Columns = None,
    items: options.Items = None,
    item_column: options.ItemColumns = None,
    encoding: options.Encoding = "utf-8",
    time_unit: options.TimeUnit = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Say what a data set holds: sizes, density, lengths, time span, texts."""
    from frugalrec.data.describe import describe as summarise

    facts = summarise(opened(source, format, column, items, item_column, encoding, time_unit, seed))
    if as_json:
        options.show_json(facts)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _readable(value))
    Console().print(table)


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_readable(v)}" for k, v in value.items())
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def convert(
    source: options.Source,
    destination: Annotated[Path, typer.Argument(help="The folder to write.")],
    to: Annotated[str, typer.Option("--to", help="csv, parquet, jsonl or recbole.")] = "parquet",
    format: options.Format = "auto",
    column: options.Columns = None,
    items: options.Items = None,
    item_column: options.ItemColumns = None,
    encoding: options.Encoding = "utf-8",
    time_unit: options.TimeUnit = "auto",
    seed: options.Seed = 0,
) -> None:
    """Write a data set in another format; reading it back gives the same data."""
    from frugalrec.data.convert import convert as write

    dataset = opened(source, format, column, items, item_column, encoding, time_unit, seed)
    write(dataset, destination, to)  # type: ignore[arg-type]
    typer.echo(f"{dataset.n:,} interactions of {dataset.n_users:,} users written to {destination}")


def get(
    name: Annotated[str, typer.Argument(help="Which data set; a wrong name lists them.")],
    destination: Annotated[Path, typer.Option("--out", help="The folder to write below.")] = Path("data"),
) -> None:
    """Download a real data set, with checksum and progress."""
    from frugalrec.cli.progress import byte_bar
    from frugalrec.data.download import get as download

    with byte_bar(name) as progress:
        folder = download(name, destination, progress=progress)
    typer.echo(f"{name} is in {folder}; try: frugalrec data describe {folder}")
