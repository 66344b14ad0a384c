"""The item head: vectors by hand, gradients, what tuning changes and what it leaves alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from frugalrec.errors import ConfigError, DataError
from frugalrec.llm.local import LocalLM
from frugalrec.selection.head_norms import head_gradient_norms
from frugalrec.testing.tiny_models import tiny_llama
from frugalrec.tuning.item_head import (
    ItemHead,
    ItemHeadConfig,
    Prompts,
    item_head,
    output_title_vectors,
    profiles,
    read_prompts,
    take,
)

TITLES = ["Alien", "Heat", "Blade Runner", "The Matrix", "the quick fox", "lazy dog"]
HISTORIES = [np.array(row, dtype=np.int32) for row in ([0, 1], [2], [3, 4, 5], [5], [1, 2])]
TARGETS = np.array([2, 3, 0, 4, 5])


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LocalLM:
    """A LLaMA of three layers."""
    return LocalLM.load(tiny_llama(tmp_path_factory.mktemp("llama"), num_hidden_layers=3), dtype="float32")


def prompts(lm: LocalLM, layers: int = 2) -> Prompts:
    """Return the prompts of all histories."""
    texts = ["Films watched: " + "; ".join(TITLES[i] for i in history) for history in HISTORIES]
    return read_prompts(lm, texts, HISTORIES, output_title_vectors(lm, TITLES), layers=layers)


@pytest.fixture
def head(lm: LocalLM) -> Iterator[ItemHead]:
    """A fresh head on two layers."""
    config = ItemHeadConfig(layers=2, rank=2, alpha=4, batch_size=2, epochs=30, learning_rate=0.02)
    with item_head(lm, output_title_vectors(lm, TITLES), config) as found:
        yield found


def test_title_vectors_by_hand(lm: LocalLM) -> None:
    """Weighted mean of output embeddings, centred, of length 1."""
    rows = lm.encode([f" {title}" for title in TITLES])
    table = lm.network.get_output_embeddings().weight.detach().numpy()
    means = []
    for row in rows:
        weights = [np.log(7 / (1 + sum(token in other for other in rows))) + 1 for token in row]
        means.append(sum(w * table[t] for w, t in zip(weights, row, strict=True)) / sum(weights))
    wanted = np.array(means) - np.mean(means, axis=0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(output_title_vectors(lm, TITLES), wanted, rtol=1e-4, atol=1e-5)


def test_an_empty_history_has_no_direction(lm: LocalLM) -> None:
    """Its profile is zero, others have length 1."""
    found = profiles(output_title_vectors(lm, TITLES), [np.array([], dtype=np.int32), HISTORIES[0]])
    assert not found[0].any()
    assert np.linalg.norm(found[1]) == pytest.approx(1, rel=1e-5)


def test_the_start_by_hand(lm: LocalLM, head: ItemHead) -> None:
    """Before tuning, a user is the profile plus a tenth of the normalised last state."""
    texts = ["Films watched: " + "; ".join(TITLES[i] for i in history) for history in HISTORIES]
    given = prompts(lm)
    for row, (tokens, user) in enumerate(zip(lm.encode(texts), head.users(given), strict=True)):
        with torch.no_grad():
            state = lm.network.base_model(input_ids=torch.tensor([tokens])).last_hidden_state[0, -1].numpy()
        wanted = given.profiles[row] + 0.1 * state / np.linalg.norm(state)
        np.testing.assert_allclose(user, wanted, rtol=2e-2, atol=2e-3)


@pytest.mark.slow
def test_tuning_learns_the_targets(lm: LocalLM, head: ItemHead) -> None:
    """Every target comes first at last, and the loss falls."""
    given = prompts(lm)
    evidence = head.fit(given, TARGETS)
    scores = head.users(given) @ output_title_vectors(lm, TITLES).T
    assert scores.argmax(axis=1).tolist() == TARGETS.tolist()
    assert evidence["loss_by_epoch"][-1] < evidence["loss_by_epoch"][0] / 2
    assert evidence["samples"] == 5


def test_the_model_is_given_back(lm: LocalLM) -> None:
    """After the context the network has no LoRA matrix and says what it said; two heads do not meet."""
    given, vectors = prompts(lm), output_title_vectors(lm, TITLES)
    ids = torch.tensor([[5, 6, 7]])
    before = lm.network(input_ids=ids).logits
    found = []
    for _ in range(2):
        with item_head(lm, vectors, ItemHeadConfig(layers=2, epochs=2, learning_rate=0.01, seed=3)) as one:
            one.fit(given, TARGETS)
            found.append(one.users(given))
    assert np.array_equal(found[0], found[1])
    assert torch.equal(lm.network(input_ids=ids).logits, before)
    assert not any("lora_" in name for name, _ in lm.network.named_parameters())


def test_batches_and_order_change_no_user(lm: LocalLM, head: ItemHead) -> None:
    """One prompt a pass or all; reversed or not."""
    given = prompts(lm)
    whole = head.users(given)
    np.testing.assert_allclose(head.users(given, max_batch_tokens=1), whole, rtol=1e-4, atol=1e-5)
    order = np.arange(5)[::-1]
    np.testing.assert_allclose(head.users(take(given, order)), whole[order], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", ["lora_", r"layers\.2\.self_attn\.v_proj\.lora_B"])
@pytest.mark.parametrize("tuned", [False, True])
def test_norms_are_those_of_a_loop(lm: LocalLM, head: ItemHead, parameters: str, tuned: bool) -> None:
    """The closed form equals one backward pass a prompt, at the start and after tuning."""
    given = prompts(lm)
    if tuned:
        head.fit(given, TARGETS)
    chosen = [p for name, p in head.layers.network.named_parameters() if re.search(parameters, name)]
    wanted = []
    for row in range(5):
        loss = head.losses(given, [row], torch.from_numpy(TARGETS[row : row + 1])).sum()
        gradients = torch.autograd.grad(loss, chosen)
        wanted.append(float(sum(g.double().square().sum() for g in gradients)) ** 0.5)
    for size in (1, 1000):
        found = head_gradient_norms(head, given, TARGETS, parameters=parameters, max_batch_tokens=size)
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_bad_input_is_named(lm: LocalLM, head: ItemHead) -> None:
    """Targets that do not fit, foreign vectors, options out of range, weights that are no LoRA matrix."""
    with pytest.raises(DataError, match="5 prompts and 4 targets"):
        head.fit(prompts(lm), TARGETS[:4])
    with pytest.raises(ConfigError, match="no LoRA matrix"):
        head_gradient_norms(head, prompts(lm), TARGETS, parameters="norm")
    with pytest.raises(ConfigError, match="epochs must be above 0"):
        ItemHeadConfig(epochs=0)


def test_states_of_another_cut_are_refused(lm: LocalLM, head: ItemHead) -> None:
    """Shapes would fit, and the result would be wrong."""
    with pytest.raises(ConfigError, match="read up to layer 2, the head tunes from layer 1 on"):
        head.users(prompts(lm, layers=1))


def test_an_item_without_title_has_no_vector(lm: LocalLM) -> None:
    """Zeros, and the others are centred among themselves."""
    found = output_title_vectors(lm, [*TITLES, " "])
    assert not found[-1].any()
    np.testing.assert_allclose(np.linalg.norm(found[:-1], axis=1), 1, rtol=1e-5)


def test_the_model_is_given_back_after_an_error(lm: LocalLM) -> None:
    """An error inside leaves no LoRA matrix behind."""
    with pytest.raises(ZeroDivisionError), item_head(lm, output_title_vectors(lm, TITLES)):
        1 / 0  # noqa: B018 - raises
    assert not any("lora_" in name for name, _ in lm.network.named_parameters())


def test_foreign_vectors_are_refused(lm: LocalLM) -> None:
    """Item vectors of another width."""
    with (
        pytest.raises(ConfigError, match="7 values"),
        item_head(lm, np.ones((3, 7), dtype=np.float32)),
    ):
        pass
