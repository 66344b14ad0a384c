"""The commands distil and export, and re-ranking with what they wrote, on tiny models."""

import json
import random
import subprocess
import sys
import time

import pytest

pytest.importorskip("peft", reason="needs frugalrec[llm]")

import yaml


@pytest.mark.slow
def test_the_prompt_of_a_run_is_distilled_and_re_ranks(command, model, tmp_path):
    settings = {
        "data": {"source": "film-club", "members": 40},
        "recommenders": {"names": ["popularity"]},
        "selection": {"scorer": "random", "budget": 6},
        "tuning": {"epochs": 1, "negatives": 1, "rank": 2, "learning_rate": 0.01},
        "llm": {"model": str(model), "dtype": "float32", "candidates": 4, "calibration_users": 3,
                "zero_shot": False, "weights": [1.0]},
        "allocation": {"budget": 3},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    code, _, err = command("run", "film-club", "--config", "run.yaml", "--out", "r", "--json")
    assert code == 0, err
    words = ("distil", "r", "--prompt-vectors", 4, "--prompts", 12, "--validation-prompts", 4)
    code, out, err = command(*words, "--set", "epochs=2", "--set", "learning_rate=0.3", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["rows"] >= 10 and facts["validation_rows"] >= 2 and facts["vectors"] == 4
    assert facts["kl_after"] < facts["kl_before"]
    assert facts["adapter"] == "r/tuning/adapter" and "prompt cache" in facts["verdict"]
    assert "teacher's order to" in facts["verdict"] and -1 <= facts["order_after"] <= 1
    assert json.loads((tmp_path / "r" / "student" / "distil.json").read_text()) == facts
    lists = [
        json.loads(command("recommend", "r", "-k", 4, "--json", *more)[1])
        for more in ((), ("--llm",), ("--student", "r/student"))
    ]
    worded, learned = ({item["item"] for item in part[0]["items"]} for part in lists[1:])
    assert worded == learned == {item["item"] for item in lists[0][0]["items"]}
    assert lists[1][0]["items"] != lists[2][0]["items"]  # the scores are another model's
    code, out, err = command("export", "r/student", "--out", "plain", "--json")
    assert code == 0 and json.loads(out)["difference"] < 1e-4, err
    assert (tmp_path / "plain" / "model.safetensors").is_file()


@pytest.mark.slow
def test_an_adapter_is_distilled_with_data_beside_it(command, model, prompts, tmp_path):
    tune = ("tune", prompts, "--llm", model, "--shots", 8, "--style", "alpaca", "--dtype", "float32")
    fields = ("--set", "epochs=1", "--set", "rank=2", "--set", "max_tokens=1024")
    assert command(*tune, *fields, "--out", "a")[0] == 0
    words = ("distil", "a", "--data", prompts, "--prompts", 8, "--validation-prompts", 4)
    code, out, err = command(*words, "--set", "epochs=1", "--dtype", "float32", "--out", "s")
    assert code == 0 and "10 vectors learned from 8 prompts" in out and "as cheap" not in out, err
    code, out, err = command(
        *words, "--mode", "prefix-kv", "--set", "epochs=1", "--dtype", "float32", "--out", "p"
    )
    assert code == 0 and "there a cached worded prompt is as cheap" in out, err
    code, _, err = command("export", "p", "--out", "x")
    assert code == 2 and "no prompt vectors" in err
    for wrong, message in (
        (("distil", "a"), "name it, or data alike, with --data"),
        (("distil", "nowhere"), "neither a finished run nor an adapter"),
        ((*words[:4], "--prompts", 99), "holds 24 prompts, fewer than 99"),
        ((*words, "--set", "rate=1"), "no field 'rate'"),
        ((*words, "--mode", "magic"), "mode must be one of vectors"),
        ((*words, "--prompt-vectors", 1), "can stand behind the content"),
        ((*words, "--prompts", 0), "--prompts must be at least 1"),
        ((*words, "--set", "epochs=many"), "of the wrong kind"),
    ):
        code, _, err = command(*wrong, "--out", "y")
        assert code != 0 and message in err, err


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["vectors", "lora", "prefix-kv"])
def test_killed_distillation_ends_bit_for_bit_like_an_unbroken_one(mode, tmp_path, model, prompts):
    ended = {}
    for name, kills in (("whole", ()), ("broken", (3, 12))):
        folder = tmp_path / name
        folder.mkdir()
        tune(model, prompts, folder / "a")
        for step in kills:
            process = start(mode, prompts, folder / "s")
            kill_after(process, folder / "s" / "checkpoints", step)
        process = start(mode, prompts, folder / "s")
        assert process.wait(timeout=900) == 0, (folder / "s.log").read_text()
        manifest = json.loads((folder / "s" / "frugalrec_prompt.json").read_text())
        own = sorted(path for path in (folder / "s").rglob("*.safetensors"))
        ended[name] = manifest["evidence"], [path.read_bytes() for path in own], [p.name for p in own]
    (whole, weights, names), (broken, again, others) = ended["whole"], ended["broken"]
    assert names == others and weights == again
    assert broken["resumed_at"] > 0 == whole["resumed_at"]
    for fact in ("loss_curve", "validation", "best_epoch", "kl_before", "kl_after", "tokens_trained"):
        assert broken[fact] == whole[fact]


def tune(model, prompts, out):
    words = ["tune", prompts, "--llm", model, "--shots", 8, "--style", "plain", "--dtype", "float32"]
    fields = ["--set", "epochs=1", "--set", "rank=2", "--out", out]
    subprocess.run([sys.executable, "-m", "frugalrec", *map(str, [*words, *fields])], check=True)


def start(mode, prompts, out):
    options = ["--data", prompts, "--prompts", 16, "--validation-prompts", 4, "--dtype", "float32"]
    words = ["distil", out.parent / "a", *options, "--prompt-vectors", 3, "--mode", mode, "--out", out]
    fields = ["epochs=3", "batch_size=2", "learning_rate=0.1"]
    settings = [word for field in fields for word in ("--set", field)]
    with out.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "frugalrec", *map(str, words), *settings],
            stdout=subprocess.DEVNULL,
            stderr=log,
        )


def kill_after(process, checkpoints, step):
    deadline = time.monotonic() + 600
    while not any(int(path.name.rpartition("-")[2]) >= step for path in checkpoints.glob("checkpoint-*")):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.01)
    time.sleep(random.Random(step).uniform(0, 0.1))
    process.kill()
    process.wait()
