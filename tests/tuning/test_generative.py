import json

import numpy as np
import pytest

from frugalrec.data.examples import examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.toys import cycle_dataset
from frugalrec.tuning.generative import GenerativeConfig, GenerativeTuner
from frugalrec.tuning.rows import title_rows

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
pytest.importorskip("peft", reason="needs frugalrec[llm]")

from frugalrec.llm.local import LocalLM  # noqa: E402
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5  # noqa: E402
from frugalrec.tuning import lora  # noqa: E402
from frugalrec.tuning.responses import ResponseTask  # noqa: E402

MAKERS = {"llama": tiny_llama, "qwen": tiny_qwen, "t5": tiny_t5}
PROMPT = NextTitlePrompt(noun="film", window=4)
TITLES = ["Alien", "Heat", "Blade Runner", "The Matrix", "Fox", "Jumps over", "Dog"]


def some_rows(n, seed=0):
    """The next film is the one after the last in the list, so there is something to learn."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(TITLES), n)
    lengths = rng.integers(1, 6, n)
    return [
        ([TITLES[(s + i) % len(TITLES)] for i in range(k)], TITLES[(s + k) % len(TITLES)])
        for s, k in zip(starts, lengths, strict=True)
    ]


@pytest.fixture(scope="module", params=list(MAKERS))
def base(request, tmp_path_factory):
    folder = MAKERS[request.param](tmp_path_factory.mktemp(request.param))
    return LocalLM.load(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return LocalLM.load(tiny_llama(tmp_path_factory.mktemp("llama")), dtype="float32", device="cpu")


def naive_loss(lm, rows):
    """Plain transformers, one row at a time: labels are -100 except for the answer and the end."""
    losses = []
    for shown, title in rows:
        question, answer = PROMPT.question(shown), PROMPT.answer(title)
        with torch.no_grad():
            if lm.is_encoder_decoder:
                ids = torch.tensor(lm.encode([question]))
                end = [lm.tokenizer.eos_token_id]
                labels = torch.tensor([lm.tokenizer(answer, add_special_tokens=False).input_ids + end])
            else:
                own = lm.encode([question])[0]
                ids = torch.tensor([lm.encode([question + answer])[0] + [lm.tokenizer.eos_token_id]])
                labels = ids.clone()
                labels[:, : len(own)] = -100
            losses.append(float(lm.network(input_ids=ids, labels=labels).loss))
    return losses


@pytest.mark.slow
def test_loss_is_the_mean_of_naive_losses_row_by_row(base):
    rows = some_rows(7)
    tuner = GenerativeTuner(prompt=PROMPT)
    queries, task = tuner._queries(base, rows), ResponseTask(base.pad_id)
    naive = naive_loss(base, rows)
    with torch.no_grad():
        found = [float(task.loss(base.network, task.collate([query]))) for query in queries]
        together = float(task.loss(base.network, task.collate(queries)))
    np.testing.assert_allclose(found, naive, rtol=1e-5)
    assert together == pytest.approx(np.mean(naive), rel=1e-5)
    assert task.judge(base.network, queries)["loss"] == pytest.approx(np.mean(naive), rel=1e-5)


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "adapter"
    config = GenerativeConfig(epochs=6, learning_rate=2e-2, batch_size=8)
    rows, validation = some_rows(32), some_rows(10, seed=1)
    return GenerativeTuner(config, prompt=PROMPT).tune(base, rows, validation, out), rows, validation


@pytest.mark.slow
def test_tuned_model_expects_the_titles(base, tuned):
    adapter, rows, validation = tuned
    lm = LocalLM.load(base.source, adapter=adapter.path, dtype="float32", device="cpu")
    before, after = np.mean(naive_loss(base, validation)), np.mean(naive_loss(lm, validation))
    assert after < 0.5 * before
    evidence = adapter.evidence
    # What is saved is what was chosen: the reloaded model has the best epoch's validation loss.
    best = min(evidence["validation"], key=lambda entry: entry["loss"])
    assert evidence["best_epoch"] == best["epoch"]
    assert after == pytest.approx(best["loss"], rel=1e-4)
    assert evidence["reload_difference"] < 1e-5
    queries = GenerativeTuner(prompt=PROMPT)._queries(base, rows)
    lengths = [len(query.tokens) + len(query.decoder) for query in queries]
    assert evidence["tokens_trained"] == 6 * sum(lengths)
    assert evidence["rows"] == 32 and evidence["rows_too_long"] == 0
    assert evidence["validation_rows"] == 10 and evidence["samples_per_second"] > 0
    assert json.loads((adapter.path / "evidence.json").read_text()) == dict(evidence)


@pytest.mark.slow
def test_gradient_is_that_of_the_naive_loss(base):
    rows, task = some_rows(5), ResponseTask(base.pad_id)
    copy = LocalLM.load(base.source, dtype="float32", device="cpu")
    model = lora.add_lora(copy.network, rank=2, alpha=4, dropout=0.0, targets="all-linear", seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.eval()
    task.loss(model, task.collate(GenerativeTuner(prompt=PROMPT)._queries(base, rows))).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    copy.network = model
    for shown, title in rows:
        question, answer = PROMPT.question(shown), PROMPT.answer(title)
        end = [copy.tokenizer.eos_token_id]
        if copy.is_encoder_decoder:
            ids = torch.tensor(copy.encode([question]))
            labels = torch.tensor([copy.tokenizer(answer, add_special_tokens=False).input_ids + end])
        else:
            ids = torch.tensor([copy.encode([question + answer])[0] + end])
            labels = ids.clone()
            labels[:, : len(copy.encode([question])[0])] = -100
        (model(input_ids=ids, labels=labels).loss / len(rows)).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            np.testing.assert_allclose(ours[name], p.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("maker", list(MAKERS))
def test_only_top_layers_are_tuned_and_differentiated(maker, tmp_path):
    lm = LocalLM.load(MAKERS[maker](tmp_path / "m"), dtype="float32", device="cpu")
    config = GenerativeConfig(epochs=1, learning_rate=1e-2, layers=1)
    adapter = GenerativeTuner(config, prompt=PROMPT).tune(lm, some_rows(8), None, tmp_path / "out")
    from safetensors.torch import load_file

    names = load_file(adapter.path / "adapter_model.safetensors")
    top = "decoder.block.1." if maker == "t5" else "layers.1."
    assert names and all(top in name for name in names)
    model = lora.add_lora(lm.network, rank=2, alpha=4, dropout=0.0, targets="all-linear", seed=0, layers=1)
    task, seen = ResponseTask(lm.pad_id), []
    stack = lora.top_layers(model.get_base_model(), 2)
    stack[0].register_full_backward_hook(lambda *_: seen.append("below"))
    stack[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].requires_grad))
    task.loss(model, task.collate(GenerativeTuner(prompt=PROMPT)._queries(lm, some_rows(3)))).backward()
    assert seen == [False]  # what enters the top layer needs no gradient, and nothing below got one


def test_named_modules_in_top_layers_only(llama):
    found = lora.top_targets(llama.network, 1, ("q_proj", "v_proj"))
    assert found == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    with pytest.raises(ConfigError, match="tune 1 to 2 of them, not 3"):
        lora.top_layers(llama.network, 3)


@pytest.mark.slow
def test_rows_that_cannot_fit_are_counted_or_refused(llama, tmp_path):
    rows = [*some_rows(6), (["Heat"], "Blade Runner " * 60)]
    adapter = GenerativeTuner(GenerativeConfig(epochs=1, max_tokens=100), prompt=PROMPT).tune(
        llama, rows, None, tmp_path / "a"
    )
    assert adapter.evidence["rows"] == 6 and adapter.evidence["rows_too_long"] == 1
    with pytest.raises(DataError, match="none of 6 rows fits into max_tokens=5"):
        GenerativeTuner(GenerativeConfig(max_tokens=5)).tune(llama, rows[:6], None, tmp_path / "b")


@pytest.mark.parametrize("blank", [" ", "\u200b"])
def test_title_rows_of_examples(blank):
    dataset = cycle_dataset(n_users=3, n_items=5, length=4)
    cut = examples(dataset, window=3)
    titles = [title if number else blank for number, title in enumerate(dataset.titles)]  # item 0 has none
    expected = [
        ([titles[i] for i in cut.history(row) if i != 0], titles[cut.targets[row]])
        for row in range(len(cut))
        if cut.targets[row] != 0
    ]
    assert title_rows(cut, titles) == expected and 0 < len(expected)
