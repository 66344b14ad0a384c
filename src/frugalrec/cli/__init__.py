"""The command line: every stage alone, and the whole run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from frugalrec import __version__
from frugalrec.cli import allocating, data, distilling, models, runs, serving, tuning
from frugalrec.errors import FrugalrecError

app = typer.Typer(
    name="frugalrec",
    help="Make LLM recommendation affordable: spend LLM compute only where it pays.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help needs no rich import, and answers twice as fast
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"frugalrec {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


runs.register(app)
tuning.register(app)
distilling.register(app)
allocating.register(app)
data.register(app)
models.register(app)
serving.register(app)


def main() -> None:
    """Run the command line; a user's error is one paragraph on standard error and an exit code."""
    try:
        app()
    except FrugalrecError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of a pipe, such as head, has gone
        sys.stderr.close()
        sys.exit(141)
