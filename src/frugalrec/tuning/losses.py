"""Losses over the answers Yes and No."""

from __future__ import annotations

import torch


def two_way_loss(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over (Yes, No) at the answer position; other tokens play no part.

    Args:
        logits: (n, 2), Yes first.
        labels: (n,), true for Yes.
        groups: (n,); not used.
    """
    return torch.nn.functional.cross_entropy(logits, (~labels).long())


def listwise_loss(logits: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Mean over groups of -log softmax(log-odds) at the group's positives.

    It asks for the right order inside a user's list and leaves the overall rate of Yes alone, which
    is what re-ranking needs.

    Args:
        logits: (n, 2), Yes first.
        labels: (n,), true for Yes.
        groups: (n,), group number of each row, 0..n_groups - 1.
    """
    odds = logits[:, 0] - logits[:, 1]
    member = groups[None, :] == torch.arange(int(groups.max()) + 1, device=groups.device)[:, None]
    total = torch.logsumexp(odds[None, :].masked_fill(~member, -torch.inf), dim=1)  # (n_groups,)
    positive = (member & labels[None, :]).float()
    counted = positive.sum(dim=1)
    mean = (positive * odds[None, :]).sum(dim=1) / counted.clamp(min=1)
    return (total - mean)[counted > 0].mean()


LOSSES = {"two-way": two_way_loss, "listwise": listwise_loss}
