import numpy as np
import pytest

from frugalrec.tuning.packing import answer_logits, collate, pack

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")


def tiny_model(seed=0):
    transformers = pytest.importorskip("transformers", reason="needs frugalrec[llm]")
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def test_group_becomes_one_row_and_its_ends_are_found():
    row = pack([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 6]])
    assert row.length == 2 + 2 + 1 + 2
    batch = collate([row, pack([[7, 8]])], torch.float32)
    assert batch["rows"].tolist() == [0, 0, 0, 1]
    ends = batch["input_ids"][batch["rows"], batch["columns"]].tolist()
    assert ends == [4, 5, 6, 8]


def test_packed_logits_are_those_of_each_prompt_alone():
    rng = np.random.default_rng(0)
    model = tiny_model()
    groups = []
    for size in (3, 1, 4):
        prefix = rng.integers(1, 60, size=rng.integers(0, 12)).tolist()
        groups.append([prefix + rng.integers(1, 60, size=rng.integers(1, 6)).tolist() for _ in range(size)])
    with torch.no_grad():
        together = answer_logits(model, collate([pack(g) for g in groups], torch.float32), [5, 9])
        alone = [
            model(input_ids=torch.tensor([prompt])).logits[0, -1, [5, 9]]
            for group in groups
            for prompt in group
        ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-5)
    assert together.std() > 0.1  # the comparison is not of zeros


def test_packed_gradients_are_those_of_each_prompt_alone():
    prompts = [[4, 8, 15, 16], [4, 8, 23], [4, 8, 15, 42]]
    gradients = []
    for parts in ([prompts], [[p] for p in prompts]):
        model = tiny_model()
        answer_logits(
            model, collate([pack(p) for p in parts], torch.float32), [5, 9]
        ).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3)
