"""A run that is killed with SIGKILL at random instants ends with the report of an unbroken one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs frugalrec[llm]")

KILLS = 20
CONFIG = """
data: {members: 40}
recommenders:
  names: [random, popularity, ease, sasrec]
  options: {sasrec: {epochs: 3, embedding_size: 8, layers: 1, heads: 1}}
  depth: 20
selection:
  scorer: dealrec
  options:
    influence: {options: {epochs: 3, embedding_size: 8}}
    effort: {max_batch_tokens: 400}
    choice: {groups: 3}
  budget: 6
  window: 4
tuning: {epochs: 2, rank: 2, negatives: 2, batch_size: 6}
llm: {dtype: float32, candidates: 5, calibration_users: 6}
allocation: {budget: 8}
evaluation: {resamples: 200}
"""
TIMED = {"created", "command", "wall_s", "cpu_s", "peak_memory_bytes", "reused", "fit_s", "ms_per_user"} | {
    "samples_per_s",
    "time_ratio",
    "verdict",  # sentences that name the seconds
}


def timeless(content):
    if isinstance(content, dict):
        return {key: timeless(value) for key, value in content.items() if key not in TIMED}
    return [timeless(value) for value in content] if isinstance(content, list) else content


def start(config: Path, model: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "frugalrec", "run", "film-club", "--json"]
    arguments = ["--config", str(config), "--llm", str(model), "--out", str(out)]
    with out.with_suffix(".log").open("wb") as log:  # a file, since nobody reads a killed run's pipe
        return subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=log)


def finish(process: subprocess.Popen[bytes], out: Path) -> dict:
    code = process.wait(timeout=600)
    assert code == 0, out.with_suffix(".log").read_text()
    return json.loads((out / "report.json").read_text())


@pytest.mark.slow
def test_killed_runs_end_with_the_report_of_an_unbroken_one(tmp_path):
    from frugalrec.testing.tiny_models import tiny_llama

    config, model = tmp_path / "run.yaml", tiny_llama(tmp_path / "tiny")
    config.write_text(CONFIG)
    began = time.monotonic()
    whole = finish(start(config, model, tmp_path / "whole"), tmp_path / "whole")
    seconds = time.monotonic() - began
    draw, kills, folder = random.Random(0), 0, 0
    while kills < KILLS:
        out, ended = tmp_path / f"broken{folder}", False
        while kills < KILLS and not ended:
            process = start(config, model, out)
            try:
                process.wait(timeout=draw.uniform(0.02, 0.7) * seconds)
                ended = True
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        report = finish(start(config, model, out), out)
        assert timeless(report) == timeless(whole), f"after {kills} kills"
        folder += 1
