"""The whole chain on real data with the real embedded LLM, at a size that fits continuous integration."""

from __future__ import annotations

import json

import numpy as np
import pytest

from frugalrec import config as configuration
from frugalrec.pipeline import run_pipeline

pytestmark = pytest.mark.slow
SMALL = {
    "recommenders.names": ["random", "max-id", "popularity", "markov", "ease", "sasrec"],
    "recommenders.options": {"sasrec": {"epochs": 2}},
    "recommenders.depth": 30,
    "selection.budget": 6,
    "selection.window": 4,
    "tuning.epochs": 2,
    "tuning.negatives": 2,
    "llm.candidates": 6,
    "llm.calibration_users": 5,
    "allocation.budget": 6,
    "evaluation.resamples": 500,
}


@pytest.mark.parametrize("name", ["ml-100k", "ml-latest-small"])
def test_a_run_on_real_data_ends_in_a_report_with_every_row(name, real_data, smollm2, tmp_path):
    chosen = configuration.load(None, {**SMALL, "data.source": str(real_data / name)})
    report = run_pipeline(chosen, tmp_path)
    arms = {arm.name: arm for arm in report.arms}
    assert {"random", "max-id", "popularity", "markov", "ease", "sasrec"} <= set(arms)
    for arm in ("llm-zero-shot", "llm-tuned", "fused-tuned", "noise-tuned", "random-permutation", "oracle"):
        assert arms[arm].kind in ("llm", "fusion", "control")
        assert arms[arm].difference["ndcg@10"].low <= arms[arm].difference["ndcg@10"].high
    assert arms["oracle"].metrics["ndcg@10"].mean >= arms[report.reference].metrics["ndcg@10"].mean
    assert arms["popularity"].metrics["ndcg@10"].mean > arms["random"].metrics["ndcg@10"].mean
    assert arms["llm-tuned"].cost.tokens_per_user > 0
    assert report.tuning["loss"] and np.isfinite(report.tuning["loss"]).all()
    stages = {stage.name: stage for stage in report.stages}
    assert stages["tuning"].tokens_trained > 0
    assert stages["llm/test-tuned"].llm_calls == 6 * 6
    assert stages["llm/test-tuned"].tokens_cached > stages["llm/test-tuned"].tokens_in
    again = run_pipeline(chosen, tmp_path)
    assert all(stage.reused for stage in again.stages)
    assert json.loads((tmp_path / "report.json").read_text())["arms"] == report.to_dict()["arms"]
    page = (tmp_path / "report.html").read_text()
    assert all(arm.label in page for arm in report.arms)
