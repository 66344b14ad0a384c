"""The commands tune and adapter, on tiny models."""

import json

import pytest

pytest.importorskip("peft", reason="needs frugalrec[llm]")

from frugalrec.testing.tiny_models import tiny_t5

pytestmark = pytest.mark.slow

TITLES = ["Alien (1979)", "Heat (1995)", "Blade Runner (1982)", "The Matrix (1999)", "Fox (2001)"]


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory):
    rows = [{"instruction": "Repeat.", "input": t if i else "", "output": t} for i, t in enumerate(TITLES)]
    path = tmp_path_factory.mktemp("alpaca") / "alpaca.json"
    path.write_text(json.dumps(rows))
    return path


def test_yes_no_rows_with_a_first_stage(command, model, prompts, alpaca, tmp_path):
    code, out, err = command(
        *("tune", prompts, "--llm", model, "--shots", 8, "--balanced", "--validation-rows", 6),
        *("--style", "plain", "--instruct", alpaca, "--instruct-rows", 4, "--set", "instruct.epochs=1"),
        *("--set", "epochs=2", "--set", "rank=2", "--set", "target_modules=[q_proj, v_proj]"),
        *("--out", tmp_path / "a", "--dtype", "float32", "--json"),
    )
    assert code == 0, err
    facts = json.loads(out)
    assert facts["rows"] == 8 and facts["validation_rows"] == 6 and facts["prompt"]["noun"] == "movie"
    assert [entry["epoch"] for entry in facts["validation"]] == [1, 2]
    evidence = json.loads((tmp_path / "a" / "evidence.json").read_text())
    first = json.loads((tmp_path / "a" / "instruct" / "evidence.json").read_text())
    assert first["rows"] == 4 and first["config"]["epochs"] == 1 and first["config"]["rank"] == 2
    assert evidence["config"]["start"] == str(tmp_path / "a" / "instruct")
    assert facts["first_stage"]["sha256"] != facts["sha256"]
    assert json.loads((tmp_path / "a" / "tune.json").read_text()) == facts
    # The same call again finds both stages finished.
    written = (tmp_path / "a" / "adapter_model.safetensors").stat().st_mtime_ns
    code, out, _ = command(
        *("tune", prompts, "--llm", model, "--shots", 8, "--balanced", "--validation-rows", 6),
        *("--style", "plain", "--instruct", alpaca, "--instruct-rows", 4, "--set", "instruct.epochs=1"),
        *("--set", "epochs=2", "--set", "rank=2", "--set", "target_modules=[q_proj, v_proj]"),
        *("--out", tmp_path / "a", "--dtype", "float32", "--json"),
    )
    assert code == 0 and json.loads(out) == facts
    assert (tmp_path / "a" / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_next_titles_of_a_data_set_then_verify_merge_and_export(command, tmp_path):
    model = tiny_t5(tmp_path / "t5")
    code, out, err = command(
        *("tune", "film-club", "--task", "next-title", "--llm", model, "--shots", 6),
        *("--validation-rows", 4, "--set", "epochs=1", "--set", "learning_rate=5e-4"),
        *("--out", tmp_path / "a", "--dtype", "float32"),
    )
    assert code == 0 and "tuned on 6 rows" in out and "epoch 1 chosen on validation" in out, err
    # YAML reads 5e-4 as a text.
    assert json.loads((tmp_path / "a" / "evidence.json").read_text())["config"]["learning_rate"] == 5e-4
    code, out, err = command("adapter", "verify", tmp_path / "a")
    assert code == 0 and "is whole" in out and "4 probes" in out, err
    code, out, err = command("adapter", "merge", tmp_path / "a", "--out", tmp_path / "m", "--json")
    assert code == 0 and json.loads(out)["difference"] < 1e-4, err
    assert (tmp_path / "m" / "model.safetensors").is_file()
    code, out, err = command("adapter", "export", tmp_path / "a", "--out", tmp_path / "a.zip")
    assert code == 0 and "adapter_model.safetensors" in out, err
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"damaged")
    code, out, err = command("adapter", "verify", tmp_path / "a", "--json")
    assert code == 2 and "differs from what was written" in err


def test_both_stages_have_the_same_matrices(command, prompts, alpaca, tmp_path):
    tune = ("tune", prompts, "--llm", tmp_path / "unread", "--out", tmp_path / "x", "--instruct", alpaca)
    for given, message in (
        ("instruct.rank=2", "instruct.rank must be 8, not 2; give rank=2 for both"),
        ("instruct.alpha=8", "instruct.alpha must be 16, not 8"),
        ("instruct.method=rslora", "instruct.method must be lora, not rslora"),
        ("instruct.target_modules=[q_proj]", "instruct.target_modules must be all-linear"),
        ("instruct.layers=1", "instruct.layers must be None, not 1"),
    ):
        code, _, err = command(*tune, "--set", given)
        assert code == 2 and message in err, err
    # The same value given twice, and one that both stages share, pass on to the model, which is not there.
    for given in (("instruct.rank=8",), ("rank=2",), ("rank=2", "instruct.rank=2")):
        code, _, err = command(*tune, *(word for field in given for word in ("--set", field)))
        assert code == 2 and "must be" not in err, err


def test_bad_input_says_what_and_how_to_mend_it(command, model, prompts, tmp_path):
    tune = ("tune", prompts, "--llm", model, "--out", tmp_path / "x")
    for arguments, message in (
        ((*tune, "--task", "rank"), "unknown task 'rank'; choose one of yes-no, next-title"),
        ((*tune, "--set", "epoch=3"), "no field 'epoch'; choose from"),
        ((*tune, "--set", "epochs=many"), "epochs must be a whole number, not 'many'"),
        ((*tune, "--set", "epochs=2.5"), "epochs must be a whole number, not 2.5"),
        ((*tune, "--set", "learning_rate=fast"), "learning_rate must be a number, not 'fast'"),
        ((*tune, "--set", "learning_rate=2e0"), "must lie between 0 and 1, not 2.0"),
        ((*tune, "--set", "target_modules=5"), "target_modules must be a text or a list of texts, not 5"),
        ((*tune, "--set", "gradient_checkpointing=maybe"), "must be true or false, not 'maybe'"),
        ((*tune, "--set", "instruct.epochs=1"), "give --instruct FILE"),
        ((*tune, "--instruct", tmp_path / "none.json"), "there is no file"),
        ((*tune, "--shots", 25), "cannot draw 25 shots from 24 rows"),
        (
            (*tune, "--shots", 24, "--validation-rows", 1),
            "holds 0 rows of histories that none of the 24 shots belongs to",
        ),
        ((*tune, "--style", "rhyme"), "unknown prompt style 'rhyme'"),
        ((*tune, "--report-to", "neptun"), "no tracker 'neptun'"),
        (("tune", "film-club", "--task", "next-title", "--balanced"), "about yes/no rows"),
        (("tune", "film-club", "--task", "next-title", "--style", "chat"), "--style is about yes/no prompts"),
        ((*tune, "--shots", -5), "shots must be at least 1, not -5"),
        ((*tune, "--validation-rows", -1), "validation_rows must be at least 0, not -1"),
        ((*tune, "--validation", prompts, "--validation-rows", 0), "uses no row of --validation FILE"),
        ((*tune, "--window", 5), "--window is about next-title"),
        ((*tune, "--instruct-rows", 5), "give --instruct FILE"),
        (("adapter", "verify", tmp_path / "nothing"), "is not an adapter"),
    ):
        code, _, err = command(*arguments)
        assert code == 2 and message in err, (arguments, err)
    assert not (tmp_path / "x").exists()
    (tmp_path / "half.json").write_text('[{"instruction": "a", "output": ""}]')
    code, _, err = command(*tune, "--instruct", tmp_path / "half.json")
    assert code == 2 and "row 1: expected an object with texts" in err


def test_rows_of_a_run_refuse_what_would_change_nothing(command, prompts, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "report.json").write_text(json.dumps({"config_yaml": "llm: {model: none}"}))
    for given in (("--style", "chat"), ("--noun", "film"), ("--window", 5), ("--balanced",)):
        code, _, err = command("tune", "r", *given)
        assert code == 2 and f"{given[0]} would change nothing" in err, err
    code, _, err = command("tune", "r", "--validation", prompts)
    assert code == 2 and "--validation would change nothing" in err, err
    code, _, err = command("tune", "r")
    assert code == 2 and "used no LLM" in err, err


def test_all_rows_of_a_validation_file(command, model, prompts, tmp_path):
    code, out, err = command(
        *("tune", prompts, "--llm", model, "--shots", 4, "--balanced", "--validation", prompts),
        *("--style", "plain", "--set", "epochs=1", "--set", "rank=2", "--set", "learning_rate=1e-3"),
        *("--out", tmp_path / "a", "--dtype", "float32", "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["validation_rows"] == 24


RUN = """
data: {members: 30}
recommenders: {names: [popularity, markov], depth: 20}
selection: {scorer: random, budget: 6, window: 4}
tuning: {epochs: 1, rank: 2, negatives: 2, batch_size: 6}
llm: {dtype: float32, candidates: 5, calibration_users: 4}
allocation: {budget: 4}
evaluation: {resamples: 100}
"""


@pytest.mark.slow
def test_samples_of_a_finished_run(command, model, tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    code, _, err = command(
        *("run", "film-club", "--config", tmp_path / "run.yaml", "--llm", model, "--out", tmp_path / "r"),
        "--json",
    )
    assert code == 0, err
    tune = ("tune", tmp_path / "r", "--dtype", "float32", "--json")  # of the run's own model
    # As the run itself tunes: the same rows, options and seed give the same adapter.
    code, out, err = command(
        *(*tune, "--out", tmp_path / "a", "--set", "epochs=1", "--set", "rank=2", "--set", "batch_size=6")
    )
    assert code == 0, err
    own = json.loads((tmp_path / "r" / "tuning" / "adapter.json").read_text())
    assert json.loads(out)["rows"] == own["evidence"]["rows"] == 18
    assert json.loads(out)["sha256"] == own["sha256"]
    code, out, err = command(
        *(*tune, "--task", "next-title", "--shots", 4, "--validation-rows", 3, "--out", tmp_path / "b")
    )
    assert code == 0, err
    facts = json.loads(out)
    assert facts["rows"] == 4 and facts["validation_rows"] == 3 and facts["prompt"]["noun"] == "film"
    code, _, err = command(*tune, "--validation-rows", 3, "--out", tmp_path / "c")
    assert code == 2 and "its valid fold chooses the fusion weight" in err
