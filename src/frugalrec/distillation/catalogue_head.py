"""An LLM as a student that writes nothing: its prompt's last state points at an item of the catalogue.

The head of `frugalrec.tuning.item_head` (LoRA in the top layers, a projection, title vectors), trained on
what users chose next and on what a teacher lists: beams of the generative model, a surrogate's best. One
forward pass a user, whatever the catalogue's size. It is saved with hashes of all that it fits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.distillation.soft_targets import SoftTargets, soft_cross_entropy
from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.grounding.base import Grounder, Progress
from frugalrec.grounding.item_ids import catalogue_hash
from frugalrec.grounding.questions import checked_titles
from frugalrec.ledger import Usage, measure
from frugalrec.llm.adapters import network_fingerprint
from frugalrec.llm.models import sha256_of
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.prompts import has_text
from frugalrec.recommenders.base import Seen, top_k
from frugalrec.runs import storage_errors, write_text
from frugalrec.tuning.item_head import (
    ItemHead,
    ItemHeadConfig,
    Prompts,
    example_histories,
    histories_of,
    item_head,
    output_title_vectors,
    read_prompts,
)
from frugalrec.types import FloatArray, IntArray, Ranking

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

WEIGHTS = "item_head.safetensors"
MANIFEST = "frugalrec_item_head.json"


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """How a catalogue head is distilled."""

    head: ItemHeadConfig = field(default_factory=ItemHeadConfig)
    """The head and its schedule."""
    soft_weight: float = 0.5
    """Share of the teacher in the loss; what users chose has the rest."""

    def __post_init__(self) -> None:
        """Check the options."""
        if not 0 <= self.soft_weight <= 1:
            raise ConfigError(f"soft_weight must lie in 0..1, not {self.soft_weight}.")


class CatalogueHead(Grounder):
    """Scores all items by one forward pass of an LLM. Use `distil_head` or `load`, and `close` when done."""

    name: ClassVar[str] = "catalogue-head"

    def __init__(
        self,
        lm: LocalLM,
        prompt: NextTitlePrompt,
        titles: Sequence[str],
        config: ItemHeadConfig,
    ) -> None:
        """Put a fresh head on the model, in place.

        Args:
            lm: A causal model without adapter.
            prompt: How histories are asked about.
            titles: Title of each item code.
            config: The head.
        """
        self.lm = lm
        self.prompt = prompt
        self.titles = [title if has_text(title) else "" for title in titles]
        self.config = config
        self._named = np.array([bool(title) for title in self.titles])
        self._vectors = output_title_vectors(lm, self.titles)
        self._opened = ExitStack()
        self.head: ItemHead = self._opened.enter_context(item_head(lm, self._vectors, config))

    def close(self) -> None:
        """Take the head's LoRA matrices off the model again."""
        self._opened.close()

    def read(self, histories: Sequence[IntArray], progress: Progress | None = None) -> Prompts:
        """Return histories as prompts that the frozen layers have read; items without title are not shown.

        Raises:
            ModelError: If a prompt is too long for the model.
        """
        windows = [history[-self.prompt.window :] for history in histories]
        shown = [window[self._named[window]] for window in windows]
        texts = [self.prompt.question([self.titles[item] for item in row]) for row in shown]
        layers = self.config.layers
        found = read_prompts(self.lm, texts, shown, self._vectors, layers=layers, progress=progress)
        longest = int(found.states.lengths.max(initial=0))
        if longest > (self.lm.max_tokens or longest):
            raise ModelError(
                f"a prompt has {longest:,} tokens, but {self.lm.model} holds {self.lm.max_tokens:,}; give a "
                "prompt with a smaller window or max_title_chars."
            )
        return found

    def scores(self, prompts: Prompts) -> FloatArray:
        """Return what the softmax takes of all items, (n_prompts, n_items); -inf for those without title."""
        users = self.config.scale * self.head.users(prompts)
        found: FloatArray = (users @ self._vectors.T).astype(np.float32)
        found[:, ~self._named] = -np.inf
        return found

    def _ground(
        self, histories: Dataset, users: IntArray, k: int, seen: Seen, progress: Progress
    ) -> tuple[Ranking, Usage]:
        checked_titles(self.titles, histories)
        shown = histories_of(histories, users)
        items = np.full((users.size, k), -1, dtype=np.int32)
        values = np.full((users.size, k), -np.inf, dtype=np.float32)
        with measure() as meter:
            for start in range(0, users.size, 256):
                rows = slice(start, min(start + 256, users.size))
                prompts = self.read(shown[rows])
                scores = self.scores(prompts)
                if seen == "exclude":
                    for row, history in zip(scores, shown[rows], strict=True):
                        row[history] = -np.inf
                best, found = top_k(scores, min(k, scores.shape[1]))
                items[rows, : best.shape[1]], values[rows, : best.shape[1]] = best, found
                meter.add(Usage(tokens_in=int(prompts.states.lengths.sum()), llm_calls=len(prompts)))
                progress(rows.stop, users.size)
        return Ranking(users=users, items=items, scores=values), self.lm._spent(meter.usage)

    def save(self, folder: Path, evidence: dict[str, Any] | None = None) -> None:
        """Write the head: its matrices, and what they fit."""
        from safetensors.torch import save_file

        tensors = {name: value.detach().cpu().contiguous() for name, value in self.head.parameters.items()}
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)  # without it, half-written matrices are no head
            save_file(tensors, str(folder / WEIGHTS))
        manifest = {
            "sha256": sha256_of(folder / WEIGHTS),
            "base": {"name": self.lm.model, "fingerprint": network_fingerprint(self.lm.network)},
            "catalogue": catalogue_hash(self.titles),
            "n_items": len(self.titles),
            "prompt": asdict(self.prompt),
            "config": asdict(self.config),
            "evidence": evidence or {},
        }
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1))

    @classmethod
    def load(cls, lm: LocalLM, folder: Path, titles: Sequence[str]) -> Self:
        """Put a saved head on the model that it was made for, in place.

        Args:
            lm: The model, without adapter.
            folder: What `save` wrote.
            titles: Title of each item code, as when the head was made.

        Raises:
            ModelError: If a file is missing or damaged, or the model is another one.
            DataError: If the catalogue is another one.
        """
        manifest = read_manifest(folder)
        path = Path(folder) / WEIGHTS
        if not path.is_file() or sha256_of(path) != manifest["sha256"]:
            state = "differs from what was written" if path.is_file() else "is missing"
            raise ModelError(f"{path} {state}; distil again, or fetch the head again.")
        if network_fingerprint(lm.network) != manifest["base"]["fingerprint"]:
            raise ModelError(
                f"the head {folder} was made for {manifest['base']['name']}, and {lm.model} is another; "
                "load it with the one it was made for."
            )
        config = ItemHeadConfig(**manifest["config"])
        found = cls(lm, NextTitlePrompt(**manifest["prompt"]), titles, config)
        if catalogue_hash(found.titles) != manifest["catalogue"]:
            found.close()
            raise DataError(
                f"the head {folder} was made for a catalogue of {manifest['n_items']:,} items; this one of "
                f"{len(titles):,} has other titles or another order; load it with its own."
            )
        found._restore(path)
        return found

    def _restore(self, path: Path) -> None:
        from safetensors.torch import load_file

        tensors, own = load_file(str(path)), self.head.parameters
        if tensors.keys() != own.keys():
            self.close()
            raise ModelError(f"{path} holds other matrices than the head has; distil again.")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])


def distil_head(
    lm: LocalLM,
    rows: Examples,
    titles: Sequence[str],
    out: Path,
    *,
    prompt: NextTitlePrompt | None = None,
    soft: SoftTargets | None = None,
    config: HeadConfig | None = None,
    progress: Progress | None = None,
) -> CatalogueHead:
    """Train a head on rows (history, next item) and on what a teacher says of them, and save it.

    Args:
        lm: A causal model without adapter; the head stays on it.
        rows: Training rows.
        titles: Title of each item code.
        out: The head's folder.
        prompt: How histories are asked about.
        soft: The teacher's lists, a row each; None learns from the targets alone.
        config: How to train.
        progress: Is told of (prompts read, prompts in all).

    Raises:
        DataError: If the teacher has not one list a row.
    """
    config, prompt = config or HeadConfig(), prompt or NextTitlePrompt()
    if soft is not None and len(soft.items) != len(rows):
        raise DataError(f"{len(soft.items)} lists of a teacher for {len(rows)} rows; give one a row.")
    student = CatalogueHead(lm, prompt, titles, config.head)
    with measure() as meter:
        prompts = student.read(example_histories(rows), progress)
        targets = rows.targets.astype(np.int64)
        found = student.head.fit(prompts, targets, _criterion(targets, soft, config.soft_weight))
    facts = {
        **found,
        "soft_weight": 0.0 if soft is None else config.soft_weight,
        "tokens": int(prompts.states.lengths.sum()),
        "cpu_seconds": meter.usage.cpu_s,
    }
    student.save(out, facts)
    return student


def _criterion(targets: NDArray[Any], soft: SoftTargets | None, weight: float) -> Any:
    if soft is None:
        return None
    wanted = torch.from_numpy(targets)
    return lambda logits, rows: soft_cross_entropy(logits, wanted[list(rows)], soft, rows, weight)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what was written about a head.

    Raises:
        ModelError: If there is none, or it is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ModelError(f"{folder} holds no item head: it has no {MANIFEST}.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = [manifest[name] for name in ("sha256", "catalogue", "n_items", "prompt", "config")]
        _ = manifest["base"]["fingerprint"], manifest["base"]["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}); distil again, or fetch it again.") from None
    return manifest
