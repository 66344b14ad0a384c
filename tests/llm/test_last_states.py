"""Last states by the short ways against the networks' own forward passes."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from frugalrec.llm import last_states as module
from frugalrec.llm.last_layer import feed_forward_of, layer_lists
from frugalrec.llm.last_states import last_states
from frugalrec.llm.loading import quiet_peft
from frugalrec.llm.local import LocalLM
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5

LENGTHS = (5, 1, 300, 40)
"""Tokens of prompts; T5 tells distances up to 128 apart."""


def prompts() -> list[list[int]]:
    draws = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (n,), generator=draws).tolist() for n in LENGTHS]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> LocalLM:
    return LocalLM.load(tiny_t5(tmp_path_factory.mktemp("t5")), dtype="float32", device="cpu")


def the_long_way(lm: LocalLM, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_is_plain_t5", lambda _: False)
        return last_states(lm, prompts())


@torch.no_grad()
def test_t5_gives_what_its_own_stacks_give(t5: LocalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    together = last_states(t5, prompts())
    torch.testing.assert_close(together, the_long_way(t5, monkeypatch), rtol=1e-5, atol=1e-5)
    alone = torch.cat([last_states(t5, [prompt]) for prompt in prompts()])  # without padding
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 7, 300])
def test_biases_are_those_of_each_pair_of_positions(t5: LocalLM, length: int) -> None:
    part = t5.network.get_encoder().block[0].layer[0].SelfAttention
    part.relative_attention_bias.weight.normal_()
    assert module._t5_bias(part, length).equal(part.compute_bias(length, length)[0])


def test_matrices_and_gradients_of_the_encoder_take_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft")
    lm = LocalLM.load(tiny_t5(tmp_path / "t5"), dtype="float32", device="cpu")
    plain = last_states(lm, prompts()).detach()
    names = ["encoder.block.0.layer.0.SelfAttention.q", "encoder.block.1.layer.1.DenseReluDense.wo"]
    config = peft.LoraConfig(r=2, target_modules=names, task_type="SEQ_2_SEQ_LM", init_lora_weights=False)
    with quiet_peft():
        lm.network = peft.get_peft_model(lm.network, config).eval()
    tuned = [parameter for parameter in lm.network.parameters() if parameter.requires_grad]
    short, long = last_states(lm, prompts()), the_long_way(lm, monkeypatch)
    assert float((short.detach() - plain).abs().max()) > 1e-3
    torch.testing.assert_close(short, long, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(found.square().sum(), tuned) for found in (short, long)]
    assert len(tuned) == 4
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen])
def test_the_last_feed_forward_part_works_once_a_prompt(make: type, tmp_path: Path) -> None:
    lm = LocalLM.load(make(tmp_path / "lm"), dtype="float32", device="cpu")
    whole = [lm.network.base_model(torch.tensor([row])).last_hidden_state[0, -1] for row in prompts()]
    torch.testing.assert_close(last_states(lm, prompts()), torch.stack(whole), rtol=1e-4, atol=1e-5)
    seen: list[torch.Size] = []
    last = lm.network.base_model.layers[-1].mlp
    hook = last.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    last_states(lm, prompts())
    assert [tuple(shape[:2]) for shape in seen] == [(4, 1)]
    hook.remove()
    lm.network.base_model(torch.tensor([prompts()[0]]))  # back to what it was
    assert "forward" not in vars(last)
    assert feed_forward_of(lm.network) is feed_forward_of(lm.network)


def test_networks_without_one_list_of_layers_are_left_alone(t5: LocalLM) -> None:
    assert len(layer_lists(t5.network)) > 1  # an encoder and a decoder
    assert feed_forward_of(t5.network) is None
