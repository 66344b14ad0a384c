"""Item-head grounding: one forward pass a user, and the prompt's last state scores the whole catalogue.

Nothing is written, so nothing is invalid or double, and the cost hardly depends on the catalogue. After
Lite-LLM4Rec (arXiv 2402.09543) and E4SRec (arXiv 2312.02443).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.errors import DataError
from frugalrec.grounding.base import Grounder, Progress
from frugalrec.grounding.questions import checked_titles, questions
from frugalrec.ledger import Usage
from frugalrec.llm.batching import token_batches
from frugalrec.recommenders.base import Seen, top_k
from frugalrec.types import PAD, FloatArray, IntArray, Ranking

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.next_title import NextTitlePrompt


class ItemHeadGrounder(Grounder):
    """Scores every item by ``scale * (projection h) . vector + bias``, h the prompt's last state."""

    name: ClassVar[str] = "item-head"

    def __init__(
        self,
        lm: LocalLM,
        prompt: NextTitlePrompt,
        vectors: NDArray[Any],
        *,
        bias: NDArray[Any] | None = None,
        scale: float = 1.0,
        projection: NDArray[Any] | None = None,
        titles: Sequence[str] | None = None,
    ) -> None:
        self.lm = lm
        self.prompt = prompt
        self.vectors = vectors
        """Item vectors, (n_items, d)."""
        self.bias = bias
        """What to add to each item's score, (n_items,)."""
        self.scale = scale
        self.projection = projection
        """(d, width of the model); default: none, and d is that width."""
        self.titles = titles
        """Title of each item code, as prompts show it; default: those of the histories."""

    def scores(self, prompts: Sequence[Sequence[int]]) -> FloatArray:
        """Return the scores of all items after some prompts (token ids), (n, n_items); one batch."""
        import torch

        from frugalrec.llm.last_states import last_states

        with torch.no_grad():
            users = last_states(self.lm, prompts)

            def on_device(array: NDArray[Any]) -> torch.Tensor:
                return torch.as_tensor(array, dtype=users.dtype, device=users.device)

            if self.projection is not None:
                users = users @ on_device(self.projection).T
            found = self.scale * users @ on_device(self.vectors).T
            if self.bias is not None:
                found += on_device(self.bias)
        return found.cpu().numpy()

    def _ground(
        self, histories: Dataset, users: IntArray, k: int, seen: Seen, progress: Progress
    ) -> tuple[Ranking, Usage]:
        self._check(histories.n_items)
        titles = checked_titles(self.titles, histories)
        items = np.full((users.size, k), PAD, dtype=np.int32)
        scores = np.full((users.size, k), -np.inf, dtype=np.float32)
        with self.lm._running() as meter:
            prompts = self.lm.encode(questions(self.lm, self.prompt, histories, users, titles, room=0))
            done = 0
            for batch in token_batches([len(p) for p in prompts], self.lm.max_batch_tokens):
                block = self.scores([prompts[b] for b in batch])
                allowed = np.isfinite(block)
                if seen == "exclude":
                    for row, user in zip(allowed, users[batch], strict=True):
                        row[histories.history(int(user))] = False
                best, values = top_k(block, k, allowed)
                items[batch, : best.shape[1]], scores[batch, : best.shape[1]] = best, values
                meter.add(Usage(tokens_in=sum(len(prompts[b]) for b in batch), llm_calls=len(batch)))
                progress(done := done + len(batch), users.size)
        return Ranking(users=users, items=items, scores=scores), self.lm._spent(meter.usage)

    def _check(self, n_items: int) -> None:
        width = int(self.lm.network.config.get_text_config().hidden_size)
        given = self.vectors.shape
        projected = (given[-1], width) if self.projection is None else self.projection.shape
        needed = width if self.projection is None else projected[0]
        if given != (n_items, needed) or projected[1:] != (width,):
            raise DataError(
                f"item vectors {given} and projection {projected} do not fit {n_items} items and states of "
                f"{width} numbers: give vectors ({n_items}, d) and, where d is not {width}, a projection "
                f"(d, {width})."
            )
        if self.bias is not None and self.bias.shape != (n_items,):
            raise DataError(f"the bias must be ({n_items},), not {self.bias.shape}.")
