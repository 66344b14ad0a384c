import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
from frugalrec.tuning.losses import auc, listwise_loss, two_way_loss  # noqa: E402


def test_two_way_loss_by_hand():
    logits = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    labels = torch.tensor([True, False])
    # -log sigmoid(1) = 0.313262, -log 1/2 = 0.693147
    assert two_way_loss(logits, labels, torch.zeros(2)).item() == pytest.approx(
        (0.313262 + 0.693147) / 2, abs=1e-5
    )


def test_listwise_loss_by_hand_and_blind_to_a_shift_within_groups():
    odds = torch.tensor([2.0, 1.0, 0.0, 0.0, 3.0])
    logits = torch.stack([odds, torch.zeros(5)], dim=1)
    labels = torch.tensor([True, False, False, False, False])
    groups = torch.tensor([0, 0, 0, 1, 1])
    # group 0: log(e^2 + e + 1) - 2 = 0.407606; group 1 has no positive and does not count
    assert listwise_loss(logits, labels, groups).item() == pytest.approx(0.407606, abs=1e-5)
    shifted = logits + torch.tensor([[5.0, 0.0]]) * (groups == 0)[:, None]
    assert listwise_loss(shifted, labels, groups).item() == pytest.approx(0.407606, abs=1e-5)


def test_auc_equals_counting_pairs_and_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, labels = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.4
        pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
        assert auc(scores, labels) == pytest.approx(np.mean(pairs))
        assert auc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores))
    assert np.isnan(auc(scores, np.ones(30, dtype=bool)))
