"""Commands that decide for all users: allocate plan, export-batch, import-batch, rank."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from frugalrec.cli import options

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")]
PlanFile = Annotated[Path, typer.Option("--plan", help="The plan, as allocate plan wrote it.")]

group = typer.Typer(
    name="allocate",
    help="Give the LLM only the users for whom it pays: plan under a budget, ask, and rank.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    app.add_typer(group)


@group.command()
def plan(
    folder: Folder,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            help='The most to spend: "300 users", "20%", "1M tokens", "2 USD"; default: the run\'s.',
        ),
    ] = None,
    policy: Annotated[str, typer.Option("--policy", help="Who comes first.")] = "gain-per-cost",
    floor: Annotated[
        float, typer.Option("--floor", help="Share of the budget for the least active tenth.")
    ] = 0.0,
    out: Annotated[Path, typer.Option("--out", help="The plan to write (CSV).")] = Path("plan.csv"),
    as_json: options.AsJson = False,
) -> None:
    """Decide which users get the LLM, and say what that would cost; asks nothing."""
    from frugalrec.stages import planning

    facts = planning.plan(folder, out, budget=budget, policy=policy, floor=floor)
    if as_json:
        options.show_json(facts)
        return
    typer.echo(
        f"{facts['routed']:,} of {facts['users']:,} users get the LLM ({facts['policy']}, budget "
        f"{facts['budget']}): about {facts['cost']:,.4g} {facts['unit']}, of {facts['cost_of_all']:,.4g} "
        f"for all."
    )
    if facts["evidence"]:
        typer.echo(f"{facts['evidence']}")
    if not facts["proven"]:
        typer.echo("No gain is proven on the run's calibration users, so gain-per-cost spends nothing.")
    typer.echo(
        f"Expected gain, mean over all users: {facts['metric']} {facts['expected_gain']:+.4f}. "
        f"The plan: {out}"
    )


@group.command(name="export-batch")
def export_batch(
    folder: Folder,
    plan_file: PlanFile = Path("plan.csv"),
    out: Annotated[Path, typer.Option("--out", help="The batch file to write (JSONL).")] = Path(
        "requests.jsonl"
    ),
    as_json: options.AsJson = False,
) -> None:
    """Write the questions about the routed users as a batch file for the provider of the run's endpoint."""
    from frugalrec.stages import planning

    facts = planning.export_requests(folder, plan_file, out)
    if as_json:
        options.show_json(facts)
        return
    files = ", ".join(facts["files"]) or "none: everything is answered"
    typer.echo(
        f"{facts['requests']:,} requests ({facts['left_out']:,} answered before or equal), about "
        f"{facts['likely_tokens']:,} tokens: {files}"
    )
    if facts["likely_money"] is not None:
        typer.echo(
            f"About {facts['likely_money']:.2f} {facts['currency']} at the prices of "
            f"{facts['prices_as_of']}, before any discount for batches."
        )


@group.command(name="import-batch")
def import_batch(
    folder: Folder,
    answers: Annotated[list[Path], typer.Option("--answers", help="A file of answers; repeat for more.")],
    plan_file: PlanFile = Path("plan.csv"),
    as_json: options.AsJson = False,
) -> None:
    """Read the provider's answers into the run; broken, unknown and missing ones are counted."""
    from frugalrec.stages import planning

    facts = planning.import_answers(folder, plan_file, answers)
    if as_json:
        options.show_json(facts)
        return
    typer.echo(", ".join(f"{name} {count:,}" for name, count in facts.items()))


@group.command()
def rank(
    folder: Folder,
    plan_file: PlanFile = Path("plan.csv"),
    out: Annotated[Path, typer.Option("--out", help="The lists to write (JSONL).")] = Path("lists.jsonl"),
    k: Annotated[int, typer.Option("-k", help="Length of the lists.")] = 10,
    ask: Annotated[
        bool,
        typer.Option("--ask/--no-ask", help="Ask what is not answered, or use stored answers."),
    ] = True,
    as_json: options.AsJson = False,
) -> None:
    """Write the lists of all users: re-ranked by the LLM where the plan says so, cheap for the others."""
    from frugalrec.cli.progress import StageBars
    from frugalrec.stages import planning

    quiet = as_json and not sys.stderr.isatty()
    with nullcontext() if quiet else StageBars() as bars:
        facts: dict[str, Any] = planning.rank(folder, plan_file, out, k=k, ask=ask, observer=bars)
    if as_json:
        options.show_json(facts)
        return
    told = ", ".join(f"{name} {count:,}" for name, count in facts["reasons"].items())
    typer.echo(
        f"{facts['re-ranked']:,} of {facts['users']:,} lists re-ranked ({facts['routed']:,} routed: {told}); "
        f"{facts['calls']:,} calls, {facts['tokens']:,} tokens. The lists: {out}"
    )
