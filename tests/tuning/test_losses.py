import pytest

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
from frugalrec.tuning.losses import listwise_loss, two_way_loss  # noqa: E402


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
