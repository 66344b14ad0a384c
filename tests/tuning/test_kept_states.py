import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
pytest.importorskip("peft", reason="needs frugalrec[llm]")

from frugalrec.llm.local import LocalLM  # noqa: E402
from frugalrec.llm.next_title import NextTitlePrompt  # noqa: E402
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5  # noqa: E402
from frugalrec.tuning import kept_states, lora  # noqa: E402
from frugalrec.tuning.base import TrainingRow  # noqa: E402
from frugalrec.tuning.generative import GenerativeConfig, GenerativeTuner  # noqa: E402
from frugalrec.tuning.pointwise import PointwiseConfig, PointwiseTuner  # noqa: E402
from frugalrec.tuning.responses import ResponseTask  # noqa: E402

TITLES = ["Alien", "Heat", "Blade Runner", "The Matrix", "Fox"]
ROWS = [([TITLES[i % 5], TITLES[(i * 2) % 5]][: 1 + i % 2], TITLES[(i + 1) % 5]) for i in range(10)]
OPTIONS = dict(epochs=3, learning_rate=1e-2, batch_size=4, layers=1, dropout=0.0)


def generative(lm, out):
    config = GenerativeConfig(**OPTIONS)
    return GenerativeTuner(config, prompt=NextTitlePrompt(noun="film")).tune(lm, ROWS, ROWS[:3], out)


def pointwise(lm, out):
    rows = [
        TrainingRow(prompt=f"Films watched: {a}. Next film: {b}? Answer:", label=b > a, group=number)
        for number, a in enumerate(TITLES)
        for b in TITLES[:3]
    ]
    return PointwiseTuner(PointwiseConfig(**OPTIONS)).tune(lm, rows, rows[:6], out)


@pytest.mark.slow
@pytest.mark.parametrize(("maker", "tune"), [(tiny_llama, generative), (tiny_qwen, pointwise)])
def test_half_passes_train_what_whole_passes_do(maker, tune, tmp_path, monkeypatch):
    lm = LocalLM.load(maker(tmp_path / "m"), dtype="float32", device="cpu")
    entered = []
    half = kept_states.KeptStates.loss
    monkeypatch.setattr(kept_states.KeptStates, "loss", lambda *args: entered.append(1) or half(*args))
    kept = tune(lm, tmp_path / "kept")
    assert len(entered) >= len(kept.evidence["loss_curve"])
    del entered[:]
    monkeypatch.setattr(kept_states, "BUDGET_BYTES", 0)
    whole = tune(lm, tmp_path / "whole")
    assert not entered
    for kind in ("loss_curve", "validation"):
        found, wanted = kept.evidence[kind], whole.evidence[kind]
        if kind == "validation":
            found, wanted = ([[e["epoch"], e["loss"]] for e in part] for part in (found, wanted))
        np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert kept.evidence["tokens_trained"] == whole.evidence["tokens_trained"]


def test_layers_below_do_not_run_in_a_step(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path), dtype="float32", device="cpu")
    model = lora.add_lora(lm.network, rank=2, alpha=4, dropout=0.0, targets="all-linear", seed=0, layers=1)
    queries = GenerativeTuner()._queries(lm, ROWS)
    task = kept_states.keep_states(ResponseTask(lm.pad_id), model, 1, queries)
    ran = []
    for number, layer in enumerate(lora.layer_list(model.get_base_model())):
        layer.mlp.register_forward_hook(lambda *_, number=number: ran.append(number))
    task.loss(model, task.collate(queries[:3])).backward()
    assert ran == [1]
    ran.clear()
    ResponseTask(lm.pad_id).loss(model, ResponseTask(lm.pad_id).collate(queries[:3]))
    assert ran == [0, 1]  # the network is given back as it was


@pytest.mark.slow
def test_only_rows_whose_states_are_used_are_read(tmp_path, monkeypatch):
    lm = LocalLM.load(tiny_llama(tmp_path / "m"), dtype="float32", device="cpu")
    read = []
    own = kept_states.KeptStates.read
    monkeypatch.setattr(
        kept_states.KeptStates,
        "read",
        lambda self, model, items: read.append(len(items)) or own(self, model, items),
    )
    pointwise(lm, tmp_path / "yes-no")  # 15 rows in 5 groups; its validation runs whole passes
    generative(lm, tmp_path / "titles")  # 10 rows, and 3 that are judged by their loss
    assert read == [5, 10, 3]


def test_encoders_and_full_depth_are_left_alone(tmp_path, caplog):
    caplog.set_level("INFO")
    for maker, layers in ((tiny_t5, 1), (tiny_llama, 2)):
        lm = LocalLM.load(maker(tmp_path / maker.__name__), dtype="float32", device="cpu")
        model = lora.add_lora(
            lm.network, rank=2, alpha=4, dropout=0.0, targets="all-linear", seed=0, layers=layers
        )
        task = ResponseTask(lm.pad_id)
        assert kept_states.keep_states(task, model, layers, GenerativeTuner()._queries(lm, ROWS)) is task
    assert "read in each epoch" not in caplog.text  # nothing was too large
