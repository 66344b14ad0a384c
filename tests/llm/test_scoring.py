import numpy as np
import pytest
import torch

from frugalrec.llm import scoring
from frugalrec.llm.scoring import finer

VOCABULARY, WIDTH, N, M = 50, 32, 6, 40


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("at_a_time", [1, 7, 1 << 14])
def test_rounded_logits_become_float32_sums(bias, at_a_time, monkeypatch):
    monkeypatch.setattr(scoring, "FINER", at_a_time)
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=bias).bfloat16().requires_grad_(False)
    hidden = torch.randn(N, WIDTH).bfloat16()
    places, tokens = torch.randint(N, (M,)), torch.randint(VOCABULARY, (M,))
    raw = head(hidden)[places, tokens].float()
    found = finer(raw, hidden, head, places, tokens)
    weight = head.weight.double().numpy()[tokens]
    expected = (hidden.double().numpy()[places] * weight).sum(axis=1)
    expected += head.bias.double().numpy()[tokens] if bias else 0.0
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(raw.numpy() - expected).max() > 1e-4  # the rounded ones are not as good
    capped = raw.clamp(-0.1, 0.1)
    assert finer(capped, hidden, head, places, tokens) is capped  # what is not the layer's own stays
    assert finer(raw[:0], hidden, head, places[:0], tokens[:0]).shape == (0,)
