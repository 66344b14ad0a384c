"""Training of POD: from a base model and a split to a checked folder; a killed call goes on where it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalrec.distillation.pod.loading import load_pod, read_manifest
from frugalrec.distillation.pod.model import TRAINS_ALL, PodConfig, PodModel
from frugalrec.distillation.pod.samples import train_explanations
from frugalrec.distillation.pod.templates import TEMPLATES, IdWriter, write_ids
from frugalrec.errors import DataError, ModelError, require
from frugalrec.grounding.item_ids import ItemIds, catalogue_hash
from frugalrec.tuning.base import Progress

if TYPE_CHECKING:
    from frugalrec.data.readers.p5 import Explanations
    from frugalrec.data.splits import Split
    from frugalrec.llm.local import LocalLM


class PodTrainer:
    """Trains learned prompts, and what else its mode says, on the three tasks of POD."""

    def __init__(self, config: PodConfig | None = None) -> None:
        """Store the options."""
        self.config = config or PodConfig()

    def fit(
        self,
        base: LocalLM | str | Path,
        split: Split,
        ids: ItemIds | IdWriter,
        out: Path,
        *,
        explanations: Explanations | None = None,
        progress: Progress | None = None,
    ) -> PodModel:
        """Train on the training fold, choose the epoch on the validation fold, and save.

        Args:
            base: The model, causal or encoder-decoder; it is left as it is.
            split: The folds; test interactions are looked at to drop explanations that give them away, and
                for the published negatives (`Faults.telling_negatives`).
            ids: How items are written; an `IdWriter` says it of users too.
            out: The model's folder. A killed call with the same arguments goes on where it was, and a
                finished one is found finished.
            explanations: Sentences for the task `explanation`; those of held-out pairs are dropped.
            progress: Is told of the steps.

        Raises:
            DataError: If ids are of another catalogue, or a task has no sample.
            ModelError: If the base carries an adapter, its tokenizer mixes ids with their neighbours, or all
                weights are to be trained in less than float32, where small steps are lost to rounding.
        """
        require("torch", "llm")
        from frugalrec.distillation.pod.run import PodRun
        from frugalrec.llm.local import LocalLM
        from frugalrec.tuning.adapt import prepared
        from frugalrec.tuning.processes import is_main, wait

        out = Path(out)
        whole = self.config.mode in TRAINS_ALL
        lm = base if isinstance(base, LocalLM) else LocalLM.load(base, dtype="float32" if whole else "auto")
        if whole and lm.dtype != "float32":
            raise ModelError(
                f"{lm.model} is loaded in {lm.dtype}, and mode {self.config.mode} trains all weights; load "
                "it with dtype='float32', or take mode lora+prompt."
            )
        if lm.adapter is not None:
            raise ModelError(f"{lm.model} carries the adapter {lm.adapter}; train the plain model.")
        writer = write_ids(ids) if isinstance(ids, ItemIds) else ids
        if writer.catalogue != catalogue_hash(split.train.item_ids):
            raise DataError(
                "the ids were made for another catalogue than the data's; make them for its items."
            )
        if explanations is not None:
            explanations = train_explanations(explanations, split)
        key = self._key(lm, split, writer, explanations)
        options: dict[str, Any] = {"base": lm.source or lm.model, "dtype": lm.dtype, "device": lm.device}
        if (found := _finished(out, key, writer, options)) is not None:
            return found
        checkpoints = prepared(out, key)
        run = PodRun(self.config, lm, split, writer, explanations)
        evidence = run.train(checkpoints, progress)
        if is_main():
            run.save(out, key, evidence)
            shutil.rmtree(checkpoints)
        wait()
        return load_pod(out, writer, **options)

    def _key(self, lm: LocalLM, split: Split, writer: IdWriter, explanations: Explanations | None) -> str:
        from frugalrec.tuning.adapt import versions

        told: list[Any] = []
        if explanations is not None:
            told = [explanations.users.tolist(), explanations.items.tolist(), explanations.texts]
        said = [lm.fingerprint, asdict(self.config), writer.fingerprint, versions(), told]
        folds = [split.train.fingerprint, split.valid.fingerprint]
        if self.config.faults.telling_negatives:
            folds.append(split.test.fingerprint)
        return hashlib.sha256(json.dumps([*said, *folds, TEMPLATES], default=str).encode()).hexdigest()


def _finished(out: Path, key: str, writer: IdWriter, options: Mapping[str, Any]) -> PodModel | None:
    """Return the model that this very call has left, if it is there and whole."""
    try:
        return load_pod(out, writer, **options) if read_manifest(out)["key"] == key else None
    except ModelError:  # none yet, or damaged since: it is trained again
        return None
