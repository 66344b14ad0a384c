"""Tuning that is killed with SIGKILL at random instants ends with the adapter of an unbroken run."""

import json
import random
import subprocess
import sys
import time

import pytest

pytest.importorskip("peft", reason="needs frugalrec[llm]")


def start(model, out):
    command = [sys.executable, "-m", "frugalrec", "tune", "film-club", "--task", "next-title", "--json"]
    options = ["--llm", str(model), "--out", str(out), "--shots", "16", "--validation-rows", "8"]
    fields = ["epochs=3", "batch_size=2", "learning_rate=0.01", "dropout=0.1"]
    settings = [word for field in fields for word in ("--set", field)]
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen([*command, *options, *settings], stdout=subprocess.DEVNULL, stderr=log)


def finish(process, out):
    assert process.wait(timeout=600) == 0, out.with_suffix(".log").read_text()
    return json.loads((out / "evidence.json").read_text()), (out / "adapter_model.safetensors").read_bytes()


def kill_after(process, checkpoints, step, delay):
    """Wait for a checkpoint of that step or a later one, a moment longer, and kill."""
    deadline = time.monotonic() + 300
    while not any(int(path.name.rpartition("-")[2]) >= step for path in checkpoints.glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.01)
    time.sleep(delay)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_killed_tuning_ends_bit_for_bit_like_an_unbroken_one(tmp_path):
    from frugalrec.testing.tiny_models import tiny_llama

    model = tiny_llama(tmp_path / "model")
    whole, weights = finish(start(model, tmp_path / "whole"), tmp_path / "whole")
    draw = random.Random(0)
    # 48 rows in all, 2 a step: 24 steps, a checkpoint every third one, an epoch every eighth.
    for step in (3, 9, 18):
        process = start(model, tmp_path / "broken")
        kill_after(process, tmp_path / "broken" / "checkpoints", step, draw.uniform(0, 0.2))
    broken, again = finish(start(model, tmp_path / "broken"), tmp_path / "broken")
    assert broken["resumed_at"] >= 18 or broken["resumed_at"] == 15  # 15 if it was killed writing 18
    assert again == weights
    for field in ("loss_curve", "validation", "best_epoch", "tokens_trained", "rows"):
        assert broken[field] == whole[field]
    left = {path.name for path in (tmp_path / "broken").iterdir()}
    assert left == {path.name for path in (tmp_path / "whole").iterdir()}
