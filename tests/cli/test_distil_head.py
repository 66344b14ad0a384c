"""`frugalrec distil --head items` and `recommend --student` with what it wrote."""

import json

import pytest

pytest.importorskip("peft", reason="needs frugalrec[llm]")

import yaml

from frugalrec.testing.tiny_models import tiny_llama


@pytest.mark.slow
def test_a_run_becomes_an_item_head_that_recommends(command, tmp_path):
    model = tiny_llama(tmp_path / "llama", max_position_embeddings=2048)
    settings = {
        "data": {"source": "film-club", "members": 40},
        "recommenders": {"names": ["popularity", "item-knn"]},
        "selection": {"scorer": "random", "budget": 6},
        "tuning": {"epochs": 1, "negatives": 1, "rank": 2},
        "llm": {"model": str(model), "dtype": "float32", "candidates": 4, "calibration_users": 3,
                "zero_shot": False, "weights": [1.0]},
        "allocation": {"budget": 3},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    code, _, err = command("run", "film-club", "--config", "run.yaml", "--out", "r", "--json")
    assert code == 0, err
    words = ("distil", "r", "--head", "items", "--prompts", 20, "--dtype", "float32")
    code, out, err = command(*words, "--set", "epochs=2", "--set", "rank=2", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["rows"] <= 20 and facts["tokens_per_user"] > 0 and 0 <= facts["value"] <= 1
    assert facts["difference"][1] <= facts["difference"][0] <= facts["difference"][2]
    assert json.loads((tmp_path / "r" / "head" / "distil.json").read_text()) == facts
    code, out, err = command("recommend", "r", "-k", 4, "--student", "r/head", "--json")
    assert code == 0, err
    for entry in json.loads(out):
        items = [item["item"] for item in entry["items"]]
        assert len(items) == len(set(items)) == 4
        scores = [item["score"] for item in entry["items"]]
        assert scores == sorted(scores, reverse=True)
    for wrong, message in (
        (("distil", "r", "--head", "words"), "--head must be items"),
        ((*words[:4], "--data", "film-club"), "leave --data out"),
        ((*words, "--set", "lr=1"), "no field 'lr'"),
        ((*words[:4], "--prompts", 0), "at least 1 row"),
        (("distil", "nowhere", "--head", "items"), "no finished run"),
        ((*words, "--set", "rank=many"), "wrong kind"),
        ((*words, "--set", "soft_weight=2"), "soft_weight must lie in 0..1"),
    ):
        code, _, err = command(*wrong, "--out", "y")
        assert code != 0 and message in err, (wrong, err)
