"""The network of the yes/no baselines: a sequence network that is told which titles were liked.

The 0 or 1 of a title's feedback is appended to its vector, a linear map brings the pair back to the
network's width, and the logit of Yes is the product of the last state and the target's own vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frugalrec.recommenders.feedback_rows import UNKNOWN
from frugalrec.recommenders.networks import Dropout, SequenceNetwork


class FeedbackNetwork(nn.Module):
    """Logits of Yes for histories with feedback and a target; titles are ids or frozen text vectors."""

    def __init__(self, body: SequenceNetwork, *, text_width: int | None, dropout: float) -> None:
        """Build the network.

        Args:
            body: A sequence network. Its item embedding holds the titles' vectors, or, with text, the
                one vector that stands for no title at all.
            text_width: Numbers in a text vector; None where titles are ids.
            dropout: Share of the target's vector dropped in training.
        """
        super().__init__()
        self.body = body
        width = body.items.embedding_dim
        self.project = None if text_width is None else nn.Linear(text_width, width)
        self.join = nn.Linear(width + 1, width)
        self.dropout = Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(
        self, titles: Tensor, feedback: Tensor, lengths: Tensor, targets: Tensor, table: Tensor | None
    ) -> Tensor:
        """Return the logit of Yes, (batch,).

        Args:
            titles: Title codes of the histories, (batch, length), padded at the end.
            feedback: 1 liked, 0 disliked, (batch, length).
            lengths: Titles of each row, (batch,), at least 1.
            targets: Title code of the target, (batch,).
            table: Text vector by code, (n_titles, text_width); None where titles are ids.
        """
        seen = torch.cat([self.vectors(titles, table), feedback[:, :, None]], dim=2)
        states = self.body.last_states(self.join(seen), lengths)
        logits: Tensor = (states * self.dropout(self.vectors(targets, table))).sum(dim=1) + self.bias
        return logits

    def vectors(self, codes: Tensor, table: Tensor | None) -> Tensor:
        """Return the vectors of titles, (..., width)."""
        if self.project is None or table is None:
            found: Tensor = self.body.items(codes)
            return found
        nothing = (codes == UNKNOWN)[..., None]
        return torch.where(nothing, self.body.items.weight[UNKNOWN], self.project(table[codes]))


def pointwise_loss(logits: Tensor, labels: Tensor, loss: str) -> Tensor:
    """Return the loss of each row, (n,): squared error of the probability, or binary cross-entropy."""
    if loss == "mse":
        return (torch.sigmoid(logits) - labels).square()
    return nn.functional.softplus(logits) - labels * logits


def robust_group_loss(errors: Tensor, groups: Tensor, n_groups: int, temperature: float) -> Tensor:
    """Return the worst expectation over shifts between groups of rows: ``T log sum_g p_g exp(L_g / T)``.

    p_g is the share of a group among the rows and L_g its mean error: the closed form of the worst mixture
    of groups in a KL ball around p (as in `losses.robust_loss`, with groups of rows in place of items).

    Args:
        errors: Error of each row, (n,).
        groups: Group of each row, (n,), below `n_groups`.
        n_groups: How many there are.
        temperature: T; a low one looks at the worst group, a high one at the mean.
    """
    counts = torch.bincount(groups, minlength=n_groups)
    totals = errors.new_zeros(n_groups).index_add(0, groups, errors)
    present = counts > 0
    shares = (counts[present] / groups.shape[0]).log()
    return temperature * torch.logsumexp(totals[present] / counts[present] / temperature + shares, dim=0)
