"""Yes/no tuning beyond one answer a prompt: known answers, losses over whole texts, other architectures."""

from dataclasses import replace

import numpy as np
import pytest

from frugalrec.errors import ConfigError, ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.preferences import PreferencePrompt
from frugalrec.testing import tiny_models
from frugalrec.tuning.base import TrainingRow
from frugalrec.tuning.pointwise import PointwiseConfig, PointwiseTuner

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
pytest.importorskip("peft", reason="needs frugalrec[llm]")

from frugalrec.llm.local import LocalLM  # noqa: E402

PROMPT = PreferencePrompt(noun="film", style="rated")
BUILDERS = {"llama": tiny_models.tiny_llama, "qwen": tiny_models.tiny_qwen, "t5": tiny_models.tiny_t5}


@pytest.fixture(scope="module", params=list(BUILDERS))
def base(request, tmp_path_factory):
    folder = BUILDERS[request.param](tmp_path_factory.mktemp(request.param))
    return LocalLM.load(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return LocalLM.load(tiny_models.tiny_llama(tmp_path_factory.mktemp("one")), dtype="float32", device="cpu")


def rated_rows(n=6):
    """Alien is liked, Heat is not, whatever else is."""
    rows = []
    for number in range(n):
        target, label = ("Alien", True) if number % 2 else ("Heat", False)
        asked = PROMPT.ask(["Alien", "The Net"][: 1 + number % 2], ["Heat"], target, view=number)
        rows.append(TrainingRow(prompt=asked.text, label=label, group=number, known=asked.known))
    return rows


def task_of(lm, rows, **options):
    plan = PointwiseTuner(PointwiseConfig(**options))._plan(lm, rows, ())
    return plan.task, plan.items


def test_known_answers_are_trained_where_they_stand(llama):
    rows = rated_rows()
    task, groups = task_of(llama, rows)
    batch = task.collate(groups)
    # by hand: whole prompts, one at a time, every answer by the tokens before it
    losses = []
    yes, no = (llama.tokenizer(text, add_special_tokens=False).input_ids[0] for text in PROMPT.answers)
    for row in rows:
        for offset, like in [*row.known, (len(row.prompt), row.label)]:
            ids = torch.tensor([llama.encode([row.prompt[:offset]])[0]])
            with torch.no_grad():
                pair = llama.network(ids).logits[0, -1, [yes, no]]
            losses.append(float(torch.nn.functional.cross_entropy(pair, torch.tensor(0 if like else 1))))
    with torch.no_grad():
        found = float(task.loss(llama.network, batch))
    assert len(losses) == sum(len(row.known) + 1 for row in rows) == batch["labels"].numel()
    assert found == pytest.approx(np.mean(losses), rel=1e-5)
    assert task.judge(llama.network, groups)["loss"] == pytest.approx(found, rel=1e-5)


def test_a_known_answer_in_other_tokens_is_refused(llama):
    row = rated_rows()[0]
    wrong = replace(row, known=((row.known[0][0] - 1, row.known[0][1]),))
    with pytest.raises(ModelError, match="split into other tokens"):
        task_of(llama, [wrong])


@pytest.mark.parametrize("loss", ["response", "paper"])
def test_losses_over_texts_are_those_of_transformers(llama, loss):
    rows = rated_rows(2)
    task, queries = task_of(llama, rows, loss=loss)
    for row, query in zip(rows, queries, strict=True):
        prompt = llama.encode([row.prompt])[0]
        ids = llama.encode([row.prompt + PROMPT.answers[0 if row.label else 1]])[0]
        ids = [*ids, llama.tokenizer.eos_token_id]
        hidden = len(prompt) if loss == "response" else 1
        labels = torch.tensor([[-100] * hidden + ids[hidden:]])
        with torch.no_grad():
            expected = float(llama.network(torch.tensor([ids]), labels=labels).loss)
            found = float(task.loss(llama.network, task.collate([query])))
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["two-way", "response", "paper"])
def test_tuning_moves_the_answers_and_reloads(base, tmp_path, loss):
    config = PointwiseConfig(epochs=8, learning_rate=2e-2, batch_size=6, dropout=0.0, loss=loss, layers=1)
    tuner = PointwiseTuner(config)
    rows = rated_rows()
    if loss == "paper" and base.is_encoder_decoder:
        with pytest.raises(ModelError, match="use the loss response"):
            tuner.tune(base, rows, None, tmp_path / "adapter")
        return
    adapter = tuner.tune(base, rows, rows, tmp_path / "adapter")
    lm = LocalLM.load(base.source, adapter=adapter.path, dtype="float32", device="cpu")
    labels = np.array([row.label for row in rows])
    group = PromptGroup(prefix="", suffixes=tuple(row.prompt for row in rows))

    def loss_of(model):
        (pairs,), _ = model.choose([group], PROMPT.answers)
        return float(np.log1p(np.exp(-np.where(labels, 1, -1) * (pairs[:, 0] - pairs[:, 1]))).mean())

    judged = [entry["loss"] for entry in adapter.evidence["validation"]]
    assert judged[-1] < judged[0]
    if loss == "two-way":  # the other losses look at more than the two answers
        assert loss_of(lm) < loss_of(base) - 0.05
    assert adapter.evidence["reload_difference"] < 1e-3
    assert all("layers.1" in name or "block.1" in name for name in touched(adapter.path))


def touched(folder):
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return list(file.keys())


def test_unknown_loss_is_refused():
    with pytest.raises(ConfigError, match="unknown loss 'hinge'; choose one of two-way"):
        PointwiseConfig(loss="hinge")


def test_an_answer_of_two_tokens_is_asked_by_its_first(llama):
    """The tiny tokenizer splits " Maybe"; its first token decides, and equal first tokens are refused."""
    asked = PROMPT.ask(["Alien"], [], "Heat")
    group = PromptGroup(prefix="", suffixes=(asked.text,))
    assert len(llama.tokenizer(" Maybe", add_special_tokens=False).input_ids) > 1
    (pair,), _ = llama.choose([group], (" Maybe", " No"))
    assert np.isfinite(pair).all()
    with pytest.raises(ModelError, match="cannot be told apart"):
        llama.choose([group], (" Maybe", " Many"))
