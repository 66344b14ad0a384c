"""An LLM that points at items: training, teachers, serving, files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import torch

from frugalrec.data.examples import Examples, examples
from frugalrec.data.simulate import film_club
from frugalrec.data.splits import Split, split
from frugalrec.distillation.catalogue_head import MANIFEST, WEIGHTS, CatalogueHead, HeadConfig, distil_head
from frugalrec.distillation.soft_targets import SoftTargets, soft_cross_entropy
from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.tiny_models import tiny_llama
from frugalrec.tuning.item_head import ItemHeadConfig
from frugalrec.types import Ranking

PROMPT = NextTitlePrompt(noun="film", window=4, max_title_chars=20)
HEAD = ItemHeadConfig(layers=1, rank=2, alpha=4, epochs=8, learning_rate=0.02, batch_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def lm(folder: Path) -> LocalLM:
    return LocalLM.load(folder, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def folds() -> Split:
    return split(film_club(n_members=30), "leave-last-out")


@pytest.fixture(scope="module")
def rows(folds: Split) -> Examples:
    return examples(folds.train, window=4, min_history=1).take(np.arange(24))


@pytest.fixture
def student(lm: LocalLM, folds: Split, rows: Examples, tmp_path: Path) -> Iterator[CatalogueHead]:
    config = HeadConfig(head=HEAD)
    found = distil_head(lm, rows, folds.train.titles, tmp_path / "head", prompt=PROMPT, config=config)
    yield found
    found.close()


@pytest.mark.slow
def test_lists_are_the_scores_in_order_without_what_was_seen(student: CatalogueHead, folds: Split) -> None:
    history, users = folds.history("test"), folds.users("test")[:7]
    ranking, usage = student.ground(history, users, 5)
    prompts = student.read([history.history(int(user)) for user in users])
    for row, user in enumerate(users):
        wanted = student.scores(prompts)[row]
        wanted[history.history(int(user))] = -np.inf
        np.testing.assert_array_equal(ranking.items[row], np.argsort(-wanted, kind="stable")[:5])
    assert usage.llm_calls == 7
    assert usage.tokens_out == 0
    alone = [student.ground(history, users[n : n + 1], 5)[0].items[0] for n in range(7)]
    np.testing.assert_array_equal(ranking.items, alone)


@pytest.mark.slow
def test_training_lowers_the_loss(student: CatalogueHead, tmp_path: Path) -> None:
    losses = json.loads((tmp_path / "head" / MANIFEST).read_text())["evidence"]["loss_by_epoch"]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.slow
def test_a_teacher_is_followed(lm: LocalLM, folds: Split, rows: Examples, tmp_path: Path) -> None:
    """Taught alone by a teacher that always lists three films, the student lists them."""
    liked = np.array([5, 9, 14], dtype=np.int32)
    n = len(rows)
    said = Ranking(
        users=rows.users, items=np.tile(liked, (n, 1)), scores=np.tile(np.float32([2.0, 1.0, 0.0]), (n, 1))
    )
    config = HeadConfig(head=replace(HEAD, epochs=30, learning_rate=0.05), soft_weight=1.0)
    taught = distil_head(
        lm,
        rows,
        folds.train.titles,
        tmp_path,
        prompt=PROMPT,
        soft=SoftTargets.of_ranking(said),
        config=config,
    )
    try:
        scores = taught.scores(taught.read([rows.history(row) for row in range(n)]))
        best = np.argsort(-scores, axis=1)[:, :3]
        assert np.isin(best, liked).mean() > 0.8
    finally:
        taught.close()


def test_soft_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    soft = SoftTargets(
        items=np.array([[1, 0], [2, 1]], dtype=np.int32),
        probabilities=np.array([[0.75, 0.25], [0.5, 0.5]], dtype=np.float32),
    )
    found = soft_cross_entropy(logits, torch.tensor([2, 0]), soft, [0, 1], 0.4)
    total = np.log(np.exp([1.0, 2.0, 0.5]).sum())
    first = 0.6 * (total - 0.5) + 0.4 * (0.75 * (total - 2.0) + 0.25 * (total - 1.0))
    np.testing.assert_allclose(found.numpy(), [first, np.log(3)], rtol=1e-5)


def test_lists_become_probabilities() -> None:
    ranking = Ranking(
        users=np.array([0, 1], dtype=np.int32),
        items=np.array([[3, 4], [2, -1]], dtype=np.int32),
        scores=np.array([[np.log(3), 0.0], [5.0, -np.inf]], dtype=np.float32),
    )
    np.testing.assert_allclose(
        SoftTargets.of_ranking(ranking).probabilities, [[0.75, 0.25], [1, 0]], rtol=1e-6
    )
    empty = replace(ranking, items=np.full((2, 2), -1, dtype=np.int32))
    with pytest.raises(DataError, match="list 0 is empty"):
        SoftTargets.of_ranking(empty)


@pytest.mark.slow
def test_saved_and_loaded_gives_the_same_lists(
    student: CatalogueHead, folder: Path, folds: Split, tmp_path: Path
) -> None:
    history, users = folds.history("test"), folds.users("test")[:5]
    wanted, _ = student.ground(history, users, 6)
    fresh = LocalLM.load(folder, dtype="float32", device="cpu")
    again = CatalogueHead.load(fresh, tmp_path / "head", folds.train.titles)
    found, _ = again.ground(history, users, 6)
    np.testing.assert_array_equal(found.items, wanted.items)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    again.close()
    assert not [name for name, _ in fresh.network.named_parameters() if "lora_" in name]


@pytest.mark.slow
def test_what_does_not_fit_is_refused(
    student: CatalogueHead, folder: Path, folds: Split, tmp_path: Path
) -> None:
    titles, head = list(folds.train.titles), tmp_path / "head"
    fresh = LocalLM.load(folder, dtype="float32", device="cpu")
    with pytest.raises(DataError, match="other titles or another order"):
        CatalogueHead.load(fresh, head, titles[::-1])
    other = LocalLM.load(tiny_llama(tmp_path / "other", seed=1), dtype="float32", device="cpu")
    with pytest.raises(ModelError, match="is another; load it"):
        CatalogueHead.load(other, head, titles)
    (head / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(ModelError, match="differs from what was written"):
        CatalogueHead.load(fresh, head, titles)
    (head / MANIFEST).write_text("{}")
    with pytest.raises(ModelError, match="damaged"):
        CatalogueHead.load(fresh, head, titles)
    with pytest.raises(ModelError, match="no item head"):
        CatalogueHead.load(fresh, tmp_path, titles)
    with pytest.raises(ConfigError, match="soft_weight"):
        HeadConfig(soft_weight=-1)


def test_items_without_a_title_are_neither_shown_nor_listed(
    lm: LocalLM, folds: Split, rows: Examples, tmp_path: Path
) -> None:
    titles = list(folds.train.titles)
    hidden = int(rows.history(3)[0])
    titles[hidden] = " "
    found = distil_head(
        lm, rows, titles, tmp_path, prompt=PROMPT, config=HeadConfig(head=replace(HEAD, epochs=1))
    )
    try:
        history = folds.history("test")
        ranking, _ = found.ground(history, folds.users("test")[:6], len(titles), seen="include")
        assert hidden not in ranking.items
        assert (ranking.items[:, -1] == -1).all()
    finally:
        found.close()
