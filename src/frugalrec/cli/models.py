"""Commands on language models, and the check of this installation."""

from __future__ import annotations

from typing import Annotated

import typer

from frugalrec.cli import options


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = typer.Typer(help="Fetch and list the embedded models.", no_args_is_help=True)
    group.command()(get)
    group.command("list")(list_models)
    app.add_typer(group, name="models")
    app.command()(doctor)


def get(name: Annotated[str, typer.Argument(help="Which model; a wrong name lists them.")]) -> None:
    """Fetch an embedded model, check it, and unpack it as a Hugging Face folder."""
    from frugalrec.cli.progress import spinner
    from frugalrec.llm import models

    with spinner(f"fetching {name}") as say:
        folder = models.get(name, progress=say)
    typer.echo(f"{name} is in {folder}")


def list_models(as_json: options.AsJson = False) -> None:
    """List the embedded models and whether they are here."""
    from frugalrec.llm import models

    rows = models.list_models()
    if as_json:
        options.show_json(rows)
        return
    for row in rows:
        state = (
            f"in {row['path']}" if row["fetched"] else f"fetch it with: frugalrec models get {row['name']}"
        )
        name, purpose, licence = row["name"], row["purpose"], row["licence"]
        typer.echo(f"{name:16} {purpose:15} {licence:12} {row['parameters']:>12,} parameters   {state}")


def doctor(as_json: options.AsJson = False) -> None:
    """Check this installation: versions, extras, processor, memory, disk, models."""
    from frugalrec.cli.doctor import examine

    checks = examine()
    if as_json:
        options.show_json(checks)
    else:
        for check in checks:
            typer.echo(f"{'ok ' if check['ok'] else 'no '} {check['name']:14} {check['found']}")
            if check["remedy"]:
                typer.echo(f"   {'':14} -> {check['remedy']}")
    if any(not check["ok"] and check["required"] for check in checks):
        raise typer.Exit(1)
