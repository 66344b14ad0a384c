"""The autoencoder's parts: nearest codes, straight-through gradients, the loss, restarts, learning."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from frugalrec.errors import ConfigError  # noqa: E402
from frugalrec.grounding.item_ids import rqvae, semantic_rqvae  # noqa: E402


def network(levels: int = 2, size: int = 3, d: int = 6, width: int = 4) -> rqvae.ResidualAutoencoder:
    torch.manual_seed(0)
    found = rqvae.ResidualAutoencoder(d, width, levels, size)
    torch.nn.init.normal_(found.codebooks)
    return found


def test_quantising_equals_a_loop():
    net, encoded = network().requires_grad_(False), torch.randn(5, 4)
    codes, lefts, chosen = net.quantise(encoded)
    for row in range(5):
        left = encoded[row]
        for level, book in enumerate(net.codebooks):
            code = min(range(3), key=lambda c: float((left - book[c]).square().sum()))
            assert int(codes[row, level]) == code
            torch.testing.assert_close(lefts[level, row], left)
            torch.testing.assert_close(chosen[level, row], book[code])
            left = left - book[code]


def test_the_loss_pulls_codes_and_encoder_together():
    net, vectors = network().requires_grad_(False), torch.randn(5, 6)
    encoded = net.encoder(vectors)
    _, lefts, chosen = net.quantise(encoded)
    _, loss, _ = net(vectors)
    gaps = sum(float((lefts[lv, r] - chosen[lv, r]).square().sum()) for lv in range(2) for r in range(5)) / 5
    assert float(loss) == pytest.approx((1 + rqvae.COMMITMENT) * gaps, rel=1e-5)


def test_gradients_pass_the_quantiser_straight_through():
    net, vectors = network(), torch.randn(5, 6)
    rebuilt, _, _ = net(vectors)
    (through,) = torch.autograd.grad(rebuilt.sum(), net.encoder[2].bias, retain_graph=True)
    # As if the decoder had read the encoder's output, at the quantised point.
    _, _, chosen = net.quantise(net.encoder(vectors))
    quantised = chosen.sum(dim=0).detach().requires_grad_()
    (at_codes,) = torch.autograd.grad(net.decoder(quantised).sum(), quantised)
    torch.testing.assert_close(through, at_codes.sum(dim=0))
    assert torch.autograd.grad(rebuilt.sum(), net.codebooks, allow_unused=True) == (None,)


def test_unused_codes_start_again_at_remainders():
    net, points = network(), torch.randn(20, 6)
    before = net.codebooks.detach().clone()
    used = torch.tensor([[True, False, True], [True, True, False]])
    torch.manual_seed(1)
    rqvae._restart(net, points, used)
    after = net.codebooks.detach()
    assert torch.equal(after[used], before[used])
    assert not torch.isclose(after[~used], before[~used]).any()
    _, lefts, _ = net.quantise(
        net.encoder(points)
    )  # level 0 is quantised by other codes now; its remainders are not
    assert torch.cdist(after[0, 1][None], lefts[0]).min() < 1e-5


@pytest.mark.slow
def test_training_rebuilds_better(monkeypatch):
    monkeypatch.setattr(rqvae, "LEARNING_RATE", 1e-2)  # fewer steps will do
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(64, 3)) @ rng.normal(size=(3, 10))
    options = {"levels": 3, "size": 8, "width": 3, "seed": 0}
    first = rqvae.quantised(vectors, epochs=0, **options)
    last = rqvae.quantised(vectors, epochs=60, **options)
    assert last.unexplained[0] < 0.5 < first.unexplained[0]
    assert all(len(set(column)) >= 6 for column in last.codes.T.tolist())  # codes are in use


def test_options_out_of_range_are_refused():
    for bad in ({"width": 0}, {"epochs": -1}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            semantic_rqvae(np.eye(3), np.array(["a", "b", "c"]), **bad)
