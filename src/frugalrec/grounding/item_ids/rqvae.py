"""A small residual-quantised variational autoencoder: an encoder, codebooks on what is left, a decoder.

As in TIGER (Rajput et al., NeurIPS 2023, after Zeghidour et al., 2021): codebooks start at k-means centres
of encoded items, gradients pass the quantiser straight through, codes and encoder pull each other (the
commitment loss), and a code that no item uses in an epoch starts again at a random item's remainder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frugalrec.grounding.item_ids.residuals import Quantised, first_alike, residual_kmeans
from frugalrec.rng import derive_seed, generator
from frugalrec.types import DoubleArray

COMMITMENT = 0.25
"""Weight of the encoder's pull towards its codes, against the codes' pull towards it."""
LARGEST_BATCH, SMALLEST_BATCH, STEPS = 1024, 32, 8
"""Batches are as large as that, but an epoch has at least so many steps where there are items enough."""
LEARNING_RATE = 1e-3


class ResidualAutoencoder(nn.Module):
    """Vectors (n, d) to a narrow space, through codebooks, and back."""

    def __init__(self, d: int, width: int, levels: int, size: int) -> None:
        super().__init__()
        middle = max(2 * width, d // 2)
        self.encoder = nn.Sequential(nn.Linear(d, middle), nn.ReLU(), nn.Linear(middle, width))
        self.decoder = nn.Sequential(nn.Linear(width, middle), nn.ReLU(), nn.Linear(middle, d))
        self.codebooks = nn.Parameter(torch.zeros(levels, size, width))

    def quantise(self, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (n, levels), what each level quantised and by which rows, both (levels, n, width)."""
        left, codes, lefts, chosen = encoded, [], [], []
        for book in self.codebooks:
            code = torch.cdist(left.detach(), book.detach()).argmin(dim=1)
            codes.append(code)
            lefts.append(left)
            chosen.append(book[code])
            left = left - chosen[-1].detach()
        return torch.stack(codes, dim=1), torch.stack(lefts), torch.stack(chosen)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the reconstruction, the quantiser's loss (a number) and the codes."""
        encoded = self.encoder(vectors)
        codes, lefts, chosen = self.quantise(encoded)
        pull = (lefts.detach() - chosen).square().sum(dim=(0, 2)).mean()
        commitment = (lefts - chosen.detach()).square().sum(dim=(0, 2)).mean()
        straight = encoded + (chosen.sum(dim=0) - encoded).detach()
        return self.decoder(straight), pull + COMMITMENT * commitment, codes


def quantised(
    vectors: DoubleArray, *, levels: int, size: int, width: int, epochs: int, seed: int
) -> Quantised:
    """Train on all vectors, (n, d), and return their codes; `unexplained` holds the decoder's share alone."""
    points = torch.from_numpy(vectors - vectors.mean(axis=0)).float()
    points = points / points.square().mean().sqrt().clamp(min=1e-12)
    size = min(size, len(points))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "item-ids", "rqvae", "weights"))
        network = ResidualAutoencoder(points.shape[1], width, levels, size)
        _start(network, points, seed)
        optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        for _ in range(epochs):
            _epoch(network, points, optimiser)
    with torch.no_grad():
        rebuilt, _, codes = network(points)
        left = float((rebuilt - points).square().mean() / points.square().mean().clamp(min=1e-12))
    return Quantised(codes=codes.numpy()[first_alike(vectors)], unexplained=(left,))


def _start(network: ResidualAutoencoder, points: Tensor, seed: int) -> None:
    """Put the codebooks at the centres of residual k-means on encoded items."""
    levels, size, _ = network.codebooks.shape
    with torch.no_grad():
        encoded = network.encoder(points).double().numpy()
        rng = generator(seed, "item-ids", "rqvae", "centres")
        _, centres = residual_kmeans(encoded, levels, size, rng, iterations=5)
        for book, found in zip(network.codebooks, centres, strict=True):
            book[: len(found)] = torch.from_numpy(found).float()


def _epoch(network: ResidualAutoencoder, points: Tensor, optimiser: torch.optim.Optimizer) -> None:
    levels, size, _ = network.codebooks.shape
    used = torch.zeros(levels, size, dtype=torch.bool)
    size_of_batch = min(max(len(points) // STEPS, SMALLEST_BATCH), LARGEST_BATCH)
    for rows in torch.split(torch.randperm(len(points)), size_of_batch):
        batch = points[rows]
        rebuilt, quantising, codes = network(batch)
        loss = (rebuilt - batch).square().sum(dim=1).mean() + quantising
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        used[torch.arange(levels)[:, None], codes.T] = True
    _restart(network, points, used)


def _restart(network: ResidualAutoencoder, points: Tensor, used: Tensor) -> None:
    """Put each code that went unused at what an item drawn at random leaves over at its level."""
    with torch.no_grad():
        drawn = points[torch.randint(len(points), (used.shape[1],))]
        _, lefts, _ = network.quantise(network.encoder(drawn))
        network.codebooks.copy_(torch.where(used[:, :, None], network.codebooks, lefts))
