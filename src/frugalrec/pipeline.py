"""The whole story, one call a stage: from interactions to a report of quality against cost."""

from __future__ import annotations

from pathlib import Path

from frugalrec.config import RunConfig
from frugalrec.reporting import write
from frugalrec.reporting.document import Report
from frugalrec.runs import Observer, Run, storage_errors
from frugalrec.stages import allocating, asking, cheap, data, llm, reranking, results, rivals, selection


def run_pipeline(
    config: RunConfig, folder: Path, *, observer: Observer | None = None, command: str = ""
) -> Report:
    """Run every stage, or find it finished, and write the report.

    The same call after a kill goes on where the killed one was. A changed option re-runs only the
    stages that depend on it.

    Args:
        config: What to do.
        folder: The run's folder; created if missing.
        observer: Is told of progress.
        command: The command line, for the report.

    Returns:
        The report, also written to `folder` as report.html, report.md and report.json.

    Raises:
        FrugalrecError: For everything a user can mend; finished stages stay.
    """
    # what is wrong with the options is said now, not after an hour
    cheap.check_names(config)
    allocating.check(config)
    model = None
    if config.llm.model != "none":
        reranking.check(config)
        model = llm.open_model(config)

    with Run(folder, observer) as run:
        # data: read, split by time, audit for leaks; an error-level leak ends the run here
        prepared = data.prepare(run, config)
        if model is not None:
            selection.candidate_rows(config, prepared)  # a budget above the rows is said now, too

        # recommenders: every cheap model, and the one whose lists the LLM may re-rank
        names = cheap.applicable(config, prepared)
        arms = [cheap.fit_and_evaluate(run, config, prepared, name) for name in names]
        first = cheap.choose_first_stage(config, arms)
        rival = rivals.learn_to_rank(run, config, prepared, arms, first)

        # the LLM, unless the run goes without, or no answer of it could be worth anything
        served, routing = None, None
        pointless = None if model is None else allocating.why_pointless(config, prepared, first)
        if model is not None and pointless is None:
            # selection: a few training samples; tuning: LoRA with yes/no scoring on them
            samples = selection.select_samples(run, config, prepared)
            tuned = llm.tune(run, config, prepared, first, samples, model)

            # grounding: re-rank the candidates of calibration users, who choose the LLM's weight;
            # allocation: which test users get the LLM; then re-rank theirs
            known = asking.calibrate(run, config, prepared, first, tuned, model)
            routing = allocating.allocate_users(config, prepared, arms, first, known)
            served = asking.serve(
                run, config, prepared, first, samples, tuned, known, routing.allocation, model
            )

        # evaluation: every arm and every control over the same users; reporting
        report = results.assemble(
            run, config, prepared, arms, first, served, routing, rival, command, pointless
        )
        with storage_errors(folder):
            write(report, folder)
        return report
