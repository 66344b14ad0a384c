import dataclasses
import json

import numpy as np
import pytest

from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.tuning.base import TrainingRow
from frugalrec.tuning.pointwise import PointwiseConfig, PointwiseTuner
from frugalrec.tuning.reload import check_reload, log_probabilities

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
transformers = pytest.importorskip("transformers", reason="needs frugalrec[llm]")
pytest.importorskip("peft", reason="needs frugalrec[llm]")

from frugalrec.llm import queries  # noqa: E402
from frugalrec.llm.adapters import WEIGHTS  # noqa: E402
from frugalrec.llm.local import LocalLM  # noqa: E402
from frugalrec.llm.scoring import Query  # noqa: E402
from frugalrec.tuning import lora, schedule  # noqa: E402
from frugalrec.tuning.integrity import check_trained  # noqa: E402

WORDS = "likes good bad nice dull next : Yes No a b c d e".split()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny")
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return LocalLM.load(folder, dtype="float32", device="cpu")


def some_rows(n, seed=0):
    """Users like some letters; a good film is a Yes and a bad one a No."""
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(n):
        letters = " ".join(rng.choice(list("abcde"), size=rng.integers(1, 5)))
        for word, label in [("good", True), ("bad", False), ("dull", False)]:
            rows.append(TrainingRow(prompt=f"likes {letters} next {word} :", label=label, group=group))
    return rows


CONFIG = PointwiseConfig(epochs=4, learning_rate=3e-2, batch_size=12, dropout=0.05)
ROWS, HELD_OUT = some_rows(16), some_rows(12, seed=1)


def odds(lm, rows):
    (pairs,), _ = lm.choose([PromptGroup(prefix="", suffixes=tuple(r.prompt for r in rows))], (" Yes", " No"))
    return pairs[:, 0] - pairs[:, 1]


def auc_of(lm, rows):
    from frugalrec.evaluation.pointwise import auc

    return auc(odds(lm, rows), np.array([row.label for row in rows]))


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    before = {name: weight.clone() for name, weight in base.network.state_dict().items()}
    steps = []
    out = tmp_path_factory.mktemp("out") / "adapter"
    adapter = PointwiseTuner(CONFIG).tune(base, ROWS, HELD_OUT, out, progress=lambda *s: steps.append(s))
    return adapter, before, steps


@pytest.mark.slow
def test_tuning_learns_what_held_out_rows_confirm(base, tuned):
    adapter, _, _ = tuned
    lm = LocalLM.load(base.source, adapter=adapter.path, dtype="float32", device="cpu")
    assert auc_of(base, HELD_OUT) < 0.9
    assert auc_of(lm, HELD_OUT) > 0.99


def test_base_model_is_left_as_it_was(base, tuned):
    _, before, _ = tuned
    after = base.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_adapter_carries_its_evidence_and_no_pickle(tuned):
    adapter, _, steps = tuned
    evidence = adapter.evidence
    assert {p.name for p in adapter.path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "evidence.json",
        "frugalrec_adapter.json",
    }
    assert len(adapter.sha256) == 64
    assert steps == [(step, 16) for step in range(1, 17)]  # 16 groups, 4 a step, 4 epochs
    assert [step for step, _ in evidence["loss_curve"]] == list(range(1, 17))
    assert evidence["loss_curve"][-1][1] < 0.3 * evidence["loss_curve"][0][1]
    assert [entry["epoch"] for entry in evidence["validation"]] == [1, 2, 3, 4]
    best = min(evidence["validation"], key=lambda entry: entry["loss"])
    assert evidence["best_epoch"] == best["epoch"]
    # a group "likes x1..xn next w :" has 2 + n shared tokens and 3 x 2 own ones
    letters = sum(len(row.prompt.split()) - 4 for row in ROWS[::3])
    assert evidence["tokens_trained"] == 4 * (letters + 16 * (2 + 3 * 2))
    assert evidence["tokens_trained_without_packing"] == 4 * 3 * (letters + 16 * 4)
    assert evidence["reload_difference"] < 1e-4
    assert evidence["samples_per_second"] > 0
    written = json.loads((adapter.path / "evidence.json").read_text())
    assert written["tokens_trained"] == evidence["tokens_trained"]


@pytest.mark.slow
def test_packing_changes_the_cost_and_not_the_result(base, tmp_path):
    options = dict(epochs=1, learning_rate=2e-2, batch_size=999, dropout=0.0)
    odds_of = []
    for packing in (True, False):
        config = PointwiseConfig(**options, packing=packing)
        adapter = PointwiseTuner(config).tune(base, ROWS, None, tmp_path / str(packing))
        odds_of.append(odds(LocalLM.load(base.source, adapter=adapter.path, device="cpu"), HELD_OUT))
    np.testing.assert_allclose(odds_of[0], odds_of[1], atol=1e-3)


@pytest.mark.slow
def test_killed_run_goes_on_where_it_was(base, tmp_path):
    class Killed(Exception):
        pass

    def kill(done, total):
        if done == 10:
            raise Killed

    whole = PointwiseTuner(CONFIG).tune(base, ROWS, HELD_OUT, tmp_path / "whole")
    with pytest.raises(Killed):
        PointwiseTuner(CONFIG).tune(base, ROWS, HELD_OUT, tmp_path / "cut", progress=kill)
    # What the killed call had spent at its last checkpoint; as if that had been an hour.
    spent = tmp_path / "cut" / "checkpoints" / "spent.json"
    assert 0 < json.loads(spent.read_text())["cpu_seconds"] < 3600
    spent.write_text(json.dumps({"seconds": 3600.0, "cpu_seconds": 1800.0}))
    half = tmp_path / "cut" / "checkpoints" / "checkpoint-999"
    half.mkdir()  # a checkpoint that the kill caught half-written
    steps = []
    resumed = PointwiseTuner(CONFIG).tune(
        base, ROWS, HELD_OUT, tmp_path / "cut", progress=lambda done, _: steps.append(done)
    )
    assert (
        steps[0] == resumed.evidence["resumed_at"] + 1 == 9
    )  # a checkpoint every second step; the kill struck before the one of step 10
    assert steps[-1] == 16
    assert resumed.sha256 == whole.sha256
    assert 3600 < resumed.evidence["seconds"] < 7200 and 1800 < resumed.evidence["cpu_seconds"] < 3600
    assert resumed.evidence["loss_curve"] == whole.evidence["loss_curve"]
    assert resumed.evidence["validation"] == whole.evidence["validation"]


def test_rate_rises_over_a_tenth_and_falls_to_nearly_nothing():
    rates = [schedule.rate(step, 20) for step in range(20)]
    # warm-up of 2: 1/3, 2/3, then (20 - step) / 18 from step 2 on
    np.testing.assert_allclose(rates[:4], [1 / 3, 2 / 3, 1.0, 17 / 18])
    assert rates[-1] == pytest.approx(1 / 18)
    assert max(rates) == 1.0 and min(rates) > 0
    assert schedule.rate(0, 1) == 1.0


def test_batches_hold_every_group_once_an_epoch():
    lengths = np.random.default_rng(0).integers(5, 50, 70).tolist()
    order = schedule.batches(lengths, 4, 3, seed=5)
    assert len(order) == 3 * 18 and order == schedule.batches(lengths, 4, 3, seed=5)
    for epoch in range(3):
        part = order[18 * epoch : 18 * (epoch + 1)]
        assert sorted(i for batch in part for i in batch) == list(range(70))
    assert order[:18] != order[18:36]
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in order)
    assert padded < 1.15 * 3 * sum(lengths)  # random batches of four would pad by about a half


@pytest.mark.slow
def test_checkpoint_of_another_call_is_not_resumed(base, tmp_path):
    def kill(done, total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PointwiseTuner(CONFIG).tune(base, ROWS, None, tmp_path, progress=kill)
    (tmp_path / "checkpoints" / "spent.json").write_text('{"seconds": 3600.0, "cpu_seconds": 1800.0}')
    adapter = PointwiseTuner(CONFIG).tune(base, ROWS[:24], None, tmp_path)
    assert adapter.evidence["resumed_at"] == 0 and adapter.evidence["seconds"] < 3600


@pytest.mark.slow
def test_listwise_loss_tunes_too(base, tmp_path):
    config = PointwiseConfig(epochs=6, learning_rate=2e-2, batch_size=12, loss="listwise")
    adapter = PointwiseTuner(config).tune(base, ROWS, None, tmp_path)
    assert auc_of(LocalLM.load(base.source, adapter=adapter.path, device="cpu"), HELD_OUT) > 0.99


@pytest.mark.slow
def test_half_precision_base_keeps_its_adapter_in_full(base, tmp_path):
    half = LocalLM.load(base.source, dtype="bfloat16", device="cpu")
    config = PointwiseConfig(epochs=4, learning_rate=3e-2, batch_size=12)
    adapter = PointwiseTuner(config).tune(half, ROWS, None, tmp_path)
    from safetensors.torch import load_file

    assert {w.dtype for w in load_file(tmp_path / WEIGHTS).values()} == {torch.float32}
    assert auc_of(LocalLM.load(base.source, adapter=adapter.path, device="cpu"), HELD_OUT) > 0.95


def test_adapter_that_does_nothing_is_refused(base, tmp_path):
    model = lora.add_lora(
        LocalLM.load(base.source, device="cpu").network,
        rank=2,
        alpha=4,
        dropout=0.0,
        targets="all-linear",
        seed=0,
    )
    with pytest.raises(ModelError, match="every lora_B matrix is zero"):
        check_trained(lora.adapter_weights(model))


def test_damaged_adapter_is_found_out(base, tuned, tmp_path):
    adapter, _, _ = tuned
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter.path / "adapter_model.safetensors")
    save_file({k: 1.5 * v for k, v in weights.items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((adapter.path / "adapter_config.json").read_bytes())
    asked = [
        Query(tokens=tuple(base.encode([row.prompt])[0]), positions=(2,), targets=np.array([[3, 4]]))
        for row in ROWS[:6]
    ]
    right = log_probabilities(
        LocalLM.load(base.source, adapter=adapter.path, dtype="float32", device="cpu"), asked
    )
    assert check_reload(base, adapter.path, asked, right) < 1e-6
    with pytest.raises(ModelError, match="other answers than the trained model"):
        check_reload(base, tmp_path, asked, right)


def test_answers_have_the_same_tokens_in_training_and_validation(base, monkeypatch):
    own = queries.answer_queries

    def swapped(lm, groups, answers):
        (found,) = own(lm, groups, answers)
        if len(found) == len(HELD_OUT):  # as where another prompt lets the answers merge otherwise
            found = [dataclasses.replace(query, targets=query.targets[:, ::-1]) for query in found]
        return [found]

    monkeypatch.setattr(queries, "answer_queries", swapped)
    with pytest.raises(ModelError, match="after those of validation"):
        PointwiseTuner(CONFIG)._plan(base, ROWS, HELD_OUT)
    assert len(PointwiseTuner(CONFIG)._plan(base, ROWS, ROWS[:6]).validation) == 2


def test_bad_input_names_the_value(base, tmp_path):
    with pytest.raises(ConfigError, match="rank must be at least 1, not 0"):
        PointwiseConfig(rank=0)
    with pytest.raises(ConfigError, match="'hinge'"):
        PointwiseConfig(loss="hinge")
    with pytest.raises(ConfigError, match="keep packing on"):
        PointwiseConfig(loss="listwise", packing=False)
    with pytest.raises(DataError, match="4 Yes among 4"):
        PointwiseTuner().tune(base, [row for row in ROWS if row.label][:4], None, tmp_path)
    with pytest.raises(DataError, match="max_tokens=4"):
        PointwiseTuner(PointwiseConfig(max_tokens=4)).tune(base, ROWS, None, tmp_path)
    carrying = LocalLM(base.network, base.tokenizer, model="x", adapter=tmp_path)
    with pytest.raises(ModelError, match="already carries"):
        PointwiseTuner().tune(carrying, ROWS, None, tmp_path)
