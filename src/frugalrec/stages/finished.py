"""A finished run, opened again: its stages are found, never computed, and nobody is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frugalrec.config import RunConfig
from frugalrec.data.dataset import Dataset, concatenate
from frugalrec.errors import ConfigError, StorageError
from frugalrec.runs import Observer, Run
from frugalrec.stages import allocating, asking, cheap, data, llm, selection
from frugalrec.stages.artefacts import load_json
from frugalrec.stages.cheap import CheapArm, load_model
from frugalrec.stages.data import Prepared
from frugalrec.types import IntArray, Ranking


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A finished run, and every user as of the end of its data."""

    config: RunConfig
    folder: Path
    data: Prepared
    first: CheapArm
    second: CheapArm | None
    main: asking.Calibration
    histories: Dataset
    """All that is known, the test fold included."""

    @property
    def weight(self) -> float:
        """Return the LLM's share in fused lists."""
        return self.main.weight

    @property
    def users(self) -> IntArray:
        """Return the users with a history."""
        return np.flatnonzero(self.histories.lengths > 0).astype(np.int32)

    def lists(self, arm: CheapArm, users: IntArray) -> Ranking:
        """Return a cheap model's lists of today."""
        refit = self.config.recommenders.refit
        train = self.data.split.history("test") if refit else self.data.split.train
        model = load_model(arm.stage.path, self.config, arm.name, train, fitted_on="all")
        return model.recommend(users, self.config.recommenders.depth, histories=self.histories)


def open_finished(folder: Path, observer: Observer | None = None) -> Finished:
    """Open a run that has asked an LLM; its stages are found, never computed, and nothing is asked.

    Raises:
        StorageError: If the folder holds no finished run, or one of other data, options or versions.
        ConfigError: If the run went without an LLM.
    """
    import yaml

    if not (folder / "report.json").is_file():
        raise StorageError(f"{folder} holds no finished run; make one with frugalrec run.")
    report = load_json(folder / "report.json")
    config = RunConfig.model_validate(yaml.safe_load(report["config_yaml"]))
    if config.llm.model == "none":
        raise ConfigError(
            f"the run in {folder} asked no LLM, so nothing is known of its gain; run with --llm."
        )
    model = llm.open_model(config)
    with Run(folder, observer, read_only=True) as run:
        prepared = data.prepare(run, config)
        arms = [cheap.fit_and_evaluate(run, config, prepared, n) for n in cheap.applicable(config, prepared)]
        first = cheap.choose_first_stage(config, arms)
        if (pointless := allocating.why_pointless(config, prepared, first)) is not None:
            raise ConfigError(f"the run in {folder} asked its LLM nothing: {pointless}")
        samples = selection.select_samples(run, config, prepared)
        tuned = llm.tune(run, config, prepared, first, samples, model)
        calibrated = asking.calibrate(run, config, prepared, first, tuned, model)
    main = list(calibrated.values())[-1]
    return Finished(
        config=config,
        folder=folder,
        data=prepared,
        first=first,
        second=allocating.second_stage(config, arms, first),
        main=main,
        histories=concatenate(prepared.split.history("test"), prepared.split.test),
    )
