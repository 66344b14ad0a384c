"""States below the cut: going on from them is the whole network, whatever the batch and the cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.llm.frozen_layers import FrozenLayers
from frugalrec.llm.loading import load
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5

TEXTS = [[5, 9, 30, 7], [11], [8, 8, 9, 40, 41, 42, 43], [300, 6]]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A LLaMA of four layers."""
    folder = tiny_llama(tmp_path_factory.mktemp("llama"), num_hidden_layers=4)
    return load(folder, dtype="float32", device="cpu")[0].eval()


def gpt2() -> Any:
    """Return a tiny network of another family."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=384, n_embd=32, n_layer=3, n_head=4, initializer_range=0.3)
    return transformers.GPT2LMHeadModel(config).eval()


def whole(network: Any, text: list[int]) -> torch.Tensor:
    """Return the final state of the last token, computed in one pass."""
    with torch.no_grad():
        return network.base_model(input_ids=torch.tensor([text])).last_hidden_state[0, -1]


@pytest.mark.parametrize("tuned", [1, 3, 4])
def test_going_on_is_the_whole_network(network: Any, tuned: int) -> None:
    """Below and above the cut together are one forward pass, up to half precision of the states."""
    layers = FrozenLayers(network, tuned)
    states = layers.read(TEXTS)
    with torch.no_grad():
        found = layers.last(*states.padded(range(4)))
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(found[row], whole(network, text), rtol=2e-2, atol=2e-2)


def test_another_family() -> None:
    """GPT-2 keeps its layers elsewhere."""
    network = gpt2()
    layers = FrozenLayers(network, 2)
    with torch.no_grad():
        found = layers.last(*layers.read(TEXTS).padded(range(4)))
    torch.testing.assert_close(found[2], whole(network, TEXTS[2]), rtol=2e-2, atol=2e-2)


def test_batches_change_nothing(network: Any) -> None:
    """One text a pass, or all in one; alone, or padded beside a longer one."""
    layers = FrozenLayers(network, 2)
    one, many = layers.read(TEXTS, max_batch_tokens=1), layers.read(TEXTS, max_batch_tokens=1000)
    np.testing.assert_allclose(one.values.astype(float), many.values.astype(float), rtol=2e-3, atol=2e-3)
    with torch.no_grad():
        together = layers.last(*one.padded([1, 2]))
        alone = layers.last(*one.padded([1]))
    torch.testing.assert_close(together[0], alone[0], rtol=1e-5, atol=1e-5)


def test_the_network_is_left_as_it_was(network: Any) -> None:
    """After a pass above the cut, a plain forward pass is still the whole network."""
    before = whole(network, TEXTS[0])
    layers = FrozenLayers(network, 1)
    layers.last(*layers.read(TEXTS).padded([0]))
    assert torch.equal(whole(network, TEXTS[0]), before)
    assert "forward" not in vars(layers.layers[0])


def test_an_error_leaves_the_network_as_it_was(network: Any) -> None:
    """Whatever happens above the cut, the layers below work again; their own `forward` is restored."""
    layers = FrozenLayers(network, 1)
    states = layers.read(TEXTS).padded([0])
    before, top = whole(network, TEXTS[0]), layers.layers[-1]
    own = layers.layers[0].forward
    layers.layers[0].forward = own  # as a library's hook would do
    failing = top.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layers.last(*states)
    failing.remove()
    assert layers.layers[0].__dict__["forward"] is own
    del layers.layers[0].forward
    assert torch.equal(whole(network, TEXTS[0]), before)
    assert not any("forward" in vars(part) for part in network.modules())


def test_gradients_stop_at_the_cut(network: Any) -> None:
    """Layers above the cut get gradients, those below none."""
    for parameter in network.parameters():
        parameter.grad = None
    layers = FrozenLayers(network, 1)
    layers.last(*layers.read(TEXTS).padded([0, 2])).sum().backward()
    grads = [any(p.grad is not None for p in layer.parameters()) for layer in layers.layers]
    assert grads == [False, False, False, True]
    assert layers.tuned == [3]


def test_take_and_lengths(network: Any) -> None:
    """Rows can be taken in any order."""
    states = FrozenLayers(network, 2).read(TEXTS)
    assert states.lengths.tolist() == [4, 1, 7, 2]
    some = states.take(np.array([2, 0]))
    assert len(some) == 2
    assert np.array_equal(some.values[7:], states.values[:4])
    assert len(states.take(np.array([], dtype=int))) == 0


def test_bad_input_is_named(network: Any, tmp_path: Path) -> None:
    """Empty texts, too many layers, encoders."""
    with pytest.raises(DataError, match="text 1 is empty"):
        FrozenLayers(network, 1).read([[1], []])
    with pytest.raises(ConfigError, match="4 layers"):
        FrozenLayers(network, 5)
    encoder = load(tiny_t5(tmp_path), dtype="float32", device="cpu")[0]
    with pytest.raises(ModelError, match="encoder-decoder"):
        FrozenLayers(encoder, 1)
