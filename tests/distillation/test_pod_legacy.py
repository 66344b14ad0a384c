"""POD as published: what each fault does, and that the default does not do it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch

from frugalrec.data.dataset import Dataset, concatenate
from frugalrec.data.splits import split
from frugalrec.distillation.pod.encoding import Encoder
from frugalrec.distillation.pod.legacy import FAULTS, appearance_numbers, published
from frugalrec.distillation.pod.loading import drop_cross_mask, load_pod
from frugalrec.distillation.pod.model import Faults, PodConfig, PodPrompt
from frugalrec.distillation.pod.rows import PodRows, equal_turns
from frugalrec.distillation.pod.samples import top_n_draw
from frugalrec.distillation.pod.scratch import scratch_t5
from frugalrec.distillation.pod.task import PodTask
from frugalrec.distillation.pod.templates import EXPLANATION, SEQUENTIAL, TOP_N, IdWriter, bare, write_ids
from frugalrec.distillation.pod.training import PodTrainer
from frugalrec.errors import ConfigError
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.grounding.beam_decoding import BeamGrounder
from frugalrec.grounding.item_ids import random_numbers
from frugalrec.ledger import Usage
from frugalrec.llm import beam_search
from frugalrec.llm.local import LocalLM
from frugalrec.llm.prompt_vectors import TaskPrompt, add_prompt, token_embeddings
from frugalrec.testing.toys import cycle_dataset
from frugalrec.tuning.schedule import Course

FOLDS = split(cycle_dataset(24, 16, 9, seed=1, noise=0.0), "leave-last-out")
WRITER = write_ids(random_numbers(FOLDS.train.item_ids))


def t5(folder: Path) -> LocalLM:
    made = scratch_t5(folder, width=16, layers=1, heads=2, feed_forward=16, dropout=0.0)
    return LocalLM.load(made, dtype="float32", device="cpu")


def quiet(**changes: Any) -> PodConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return published("beauty", **changes)


def test_the_preset_warns_and_is_as_published() -> None:
    with pytest.warns(UserWarning, match="for comparison only.*first appearance.*padding"):
        config = published("sports")
    assert (config.n_vectors, config.learning_rate, config.epochs, config.batch_size) == (10, 1e-3, 100, 64)
    assert (config.window, config.negatives, config.patience, config.start) == (20, 99, 5, "uniform")
    assert config.constant_rate and config.clip == 0 and config.weight_decay == 0.01
    assert quiet().learning_rate == 5e-4
    assert config.faults == FAULTS
    assert PodConfig().faults == Faults() and not any(vars(Faults()).values())
    with pytest.raises(ConfigError, match="toys"):
        published("yelp")


def test_numbers_by_first_appearance_give_the_next_item_away() -> None:
    """New items come in turn, so the test item is often the largest number so far and one; not if random."""
    rng = np.random.default_rng(0)
    rows, fresh = [], 0
    for user in range(60):
        for step in range(6):
            if step == 5 or rng.random() < 0.4:
                fresh += 1
                rows.append((f"{user + 1}", f"B{fresh}"))
            else:
                rows.append((f"{user + 1}", f"B{rng.integers(1, fresh + 1) if fresh else 1}"))
    frame = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    data = Dataset.from_frames(frame, name="numbers", seed=0)
    parts = split(data, "leave-last-out")

    def rule(answers: tuple[str, ...]) -> float:
        users = parts.users("test")
        found = []
        for user in users:
            largest = max(int(answers[item]) for item in parts.history("test").history(user))
            found.append(int(answers[parts.test.history(user)[0]]) == largest + 1)
        return float(np.mean(found))

    writer = appearance_numbers(data)
    first = list(dict.fromkeys(item for _, item in rows))
    names = data.item_ids.tolist()
    assert [int(writer.answers[names.index(name)]) for name in first] == list(range(1, len(first) + 1))
    assert writer.users is not None and writer.users[data.user_ids.tolist().index("7")] == "user_7"
    assert rule(writer.answers) > 0.5
    assert rule(write_ids(random_numbers(data.item_ids)).answers) < 0.1


def test_without_cross_mask_an_answer_depends_on_its_batch(tmp_path: Path) -> None:
    lm = t5(tmp_path / "t5")
    short, long = (torch.tensor(lm.encode([text])) for text in (" item_12", " item_12 item_3 item_45 item_6"))
    both = torch.zeros((2, long.shape[1]), dtype=torch.long)
    both[0, : short.shape[1]], both[1] = short[0], long[0]
    mask = torch.zeros_like(both)
    mask[0, : short.shape[1]], mask[1] = 1, 1
    start = torch.zeros((2, 1), dtype=torch.long)

    @torch.no_grad()
    def difference() -> float:
        alone = lm.network(
            input_ids=short, attention_mask=mask[:1, : short.shape[1]], decoder_input_ids=start[:1]
        )
        inside = lm.network(input_ids=both, attention_mask=mask, decoder_input_ids=start)
        return float((alone.logits[0] - inside.logits[0]).abs().max())

    assert difference() < 1e-5
    drop_cross_mask(lm.network)
    assert difference() > 1e-3


def test_patience_in_total_stops_earlier() -> None:
    losses = [5.0, 6.0, 4.0, 4.5, 3.0, 3.5, 3.6]

    def stopped(resets: bool) -> list[int]:
        course = Course(order=[], ends=[], learning_rate=1e-3, patience=2, patience_resets=resets)
        return [n for n in range(1, 8) if course.exhausted([{"loss": loss} for loss in losses[:n]])]

    assert stopped(False)[0] == 4  # 6.0 and 4.5: two in all
    assert stopped(True)[0] == 7  # 3.5 and 3.6: two in a row


def test_equal_turns_ignore_sizes_and_begin_in_the_order_of_the_file() -> None:
    counts = {EXPLANATION: 40, SEQUENTIAL: 20, TOP_N: 20}
    first, second = (equal_turns(counts, 4, epoch, 0) for epoch in (0, 1))
    assert len(first) == 40 // 4 + 2 * (20 // 4)
    assert [task for task, _ in first[:6]] == [EXPLANATION, SEQUENTIAL, TOP_N] * 2
    turns = [task for task, _ in [*first, *second]]
    assert max(map(turns.count, counts)) - min(map(turns.count, counts)) <= 1
    seen = np.concatenate([rows for task, rows in [*first, *second] if task == SEQUENTIAL])
    assert seen[:20].tolist() == list(range(20))  # unshuffled
    assert sorted(seen[20:40].tolist()) == list(range(20)) and seen[20:40].tolist() != list(range(20))


def test_default_batches_shuffle_from_the_start(tmp_path: Path) -> None:
    lm = t5(tmp_path / "t5")
    add_prompt(lm, TaskPrompt.uniform((SEQUENTIAL,), 2, token_embeddings(lm).shape[1], seed=0))
    encoder = Encoder(lm, WRITER, {SEQUENTIAL: "<|sequential:0|><|sequential:1|>"})
    right, faulty = (
        PodRows(encoder, PodConfig(batch_size=4, faults=faults), FOLDS.train, None).order()[0]
        for faults in (Faults(), Faults(equal_turns=True))
    )
    assert faulty[0] == [0, 1, 2, 3] and right[0] != [0, 1, 2, 3]


def test_published_negatives_tell_held_out_items_apart() -> None:
    """A held-out item of a user never stands among the published negatives, and does among ours."""
    met = concatenate(FOLDS.history("test"), FOLDS.test)

    def held_out_shown(**options: Any) -> int:
        found = 0
        for epoch in range(20):
            draw = top_n_draw(FOLDS.train, negatives=5, seed=0, epoch=epoch, **options)
            held = [set(FOLDS.test.history(int(u)).tolist()) for u in draw.users]
            found += sum(bool(held[row] & set(draw.shown(row).tolist())) for row in range(len(draw)))
        return found

    assert held_out_shown(met=met) == 0
    assert held_out_shown() > 100  # 20 x 24 prompts, each with 5 of 9 items that are not in training


def published_hits(texts: list[str], writer: IdWriter, target: int, rng: np.random.Generator) -> int:
    """The published count: a text without number becomes an item at random, and each right text is a hit."""
    items = [int(text) if text.isdigit() else int(rng.choice(writer.answers)) for text in texts]
    return items.count(int(writer.answers[target]))


def test_an_item_written_twice_is_one_hit_and_judging_again_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published evaluation counts it twice, and differs from call to call."""
    lm, users, n = t5(tmp_path / "t5"), FOLDS.users("test")[:3], 4
    tokens = lm.tokenizer.convert_tokens_to_ids
    targets = [int(FOLDS.test.history(int(user))[0]) for user in users]

    def texts_of(target: int) -> list[list[int]]:
        number = WRITER.answers[target]  # of two digits: one piece, or two
        other = WRITER.answers[(target + 1) % 16]
        pieces = [["▁" + number], ["▁" + number[0], number[1]], ["▁went"], ["▁" + other]]
        return [tokens(piece) for piece in pieces]

    found = [texts_of(target) for target in targets]
    written = beam_search.Written(tokens=found, scores=-np.arange(12, dtype=np.float32).reshape(3, n))
    monkeypatch.setattr(beam_search, "beam_search", lambda *_, **__: (written, Usage()))
    prompt = PodPrompt(writer=WRITER, template=bare(SEQUENTIAL))
    way = BeamGrounder(lm, prompt, titles=WRITER.answers)
    judged = []
    for _ in range(2):
        ranking, _ = way.ground(FOLDS.history("test"), users, n, seen="include")
        assert all(len(set(row[:2])) == 2 and row[2:] == [-1, -1] for row in ranking.items.tolist())
        held = FOLDS.targets("test")
        judged.append(evaluate_ranking("beams", ranking, held, ["hit@4", "ndcg@4"], seen=None, lists=0))
    assert way.outputs is not None
    assert (way.outputs.duplicate.tolist(), way.outputs.invalid.tolist()) == ([1] * 3, [1] * 3)
    for name in ("hit@4", "ndcg@4"):
        np.testing.assert_array_equal(judged[0].values[name], judged[1].values[name])
        assert judged[0].values[name].tolist() == [1.0] * 3
    said = [lm.tokenizer.decode(text).strip() for text in found[0]]
    drawn = [published_hits(said, WRITER, targets[0], np.random.default_rng(seed)) for seed in range(40)]
    assert set(drawn) == {2, 3}


@pytest.mark.slow
def test_a_model_trained_as_published_keeps_its_faults(tmp_path: Path) -> None:
    lm = t5(tmp_path / "t5")
    config = quiet(
        weights={SEQUENTIAL: 1.0, TOP_N: 1.0},
        negatives=5,
        epochs=2,
        batch_size=8,
        n_vectors=2,
        max_entities=40,
    )
    with pytest.warns(UserWarning, match="attends to padding"):
        trained = PodTrainer(config).fit(lm, FOLDS, appearance_numbers(FOLDS.train), tmp_path / "out")
    rows = trained.lm.network.get_input_embeddings().whole_word
    assert rows.table.padding_idx is None
    assert float(rows.table.weight[0].detach().abs().mean()) > 0.3  # N(0, 1), trained
    curve = trained.evidence["loss_curve"]
    assert len(curve) == 2 * 2 * (24 // 8)
    with pytest.warns(UserWarning, match="attends to padding"):
        load_pod(tmp_path / "out", trained.writer)


@pytest.mark.slow
def test_default_whole_word_row_zero_stays_zero(tmp_path: Path) -> None:
    config = PodConfig(
        epochs=1, batch_size=8, n_vectors=2, whole_word=True, max_entities=30, weight_decay=0.1
    )
    trained = PodTrainer(config).fit(t5(tmp_path / "t5"), FOLDS, WRITER, tmp_path / "out")
    table = trained.lm.network.get_input_embeddings().whole_word.table.weight
    assert not table[0].any() and table[1].any()


def test_padding_changes_the_published_loss_alone(tmp_path: Path) -> None:
    lm = t5(tmp_path / "t5")
    add_prompt(lm, TaskPrompt.uniform((SEQUENTIAL,), 2, token_embeddings(lm).shape[1], seed=0))
    encoder = Encoder(lm, WRITER, {SEQUENTIAL: "<|sequential:0|><|sequential:1|>"})
    rows = PodRows(encoder, PodConfig(), FOLDS.train, None)
    draw = rows.draw(SEQUENTIAL, 0)
    one = encoder.row(draw, 0)
    short = type(one)(task=one.task, tokens=one.tokens, answer=one.answer[-1:])
    for faulty in (False, True):
        task = PodTask(lm, pads_in_loss=faulty)
        with torch.no_grad():
            apart = [float(task.loss(lm.network, task.collate([row]))) for row in (one, short)]
            together = float(task.loss(lm.network, task.collate([one, short])))
        assert (together == pytest.approx(np.mean(apart), rel=1e-5)) != faulty
