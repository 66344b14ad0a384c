"""Loading of trained POD models: whole, with the right base, vocabulary and catalogue, or not at all."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalrec.distillation.pod.model import ADAPTER, MANIFEST, MODEL, PROMPT, ROWS, TRAINS_ALL, PodModel
from frugalrec.distillation.pod.templates import IdWriter
from frugalrec.errors import ModelError
from frugalrec.llm.models import sha256_of

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what was written about a trained model.

    Raises:
        ModelError: If there is none, or it is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ModelError(f"{folder} holds no trained POD model: it has no {MANIFEST}.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for name in ("key", "config", "base", "catalogue", "ids", "openings", "evidence", "files"):
            manifest[name]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}); train again.") from None
    return manifest


def load_pod(
    folder: Path,
    writer: IdWriter,
    *,
    base: str | Path | None = None,
    dtype: Any = "auto",
    device: str = "auto",
) -> PodModel:
    """Load a trained model.

    Args:
        folder: Where `PodTrainer.fit` wrote it.
        writer: How users and items are written; the one it was trained with.
        base: Where the base model is; default: what the folder says. Modes that train all weights need none.
        dtype: See `LocalLM.load`.
        device: See `LocalLM.load`.

    Raises:
        ModelError: If a file is missing or damaged, or base model, vocabulary, catalogue or ids are others.
    """
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.prompt_files import vocabulary_hash

    folder = Path(folder)
    manifest = read_manifest(folder)
    check_catalogue(manifest, writer, folder)
    for name, known in manifest["files"].items():
        if not (folder / name).is_file() or sha256_of(folder / name) != known:
            raise ModelError(f"{folder / name} is missing or differs from what was written; train again.")
    mode = manifest["config"]["mode"]
    source = folder / MODEL if mode in TRAINS_ALL else base or manifest["base"]["source"]
    lm = LocalLM.load(
        source,
        adapter=folder / ADAPTER if mode == "lora+prompt" else None,
        prompt=None if mode == "discrete" else folder / PROMPT,
        dtype=dtype,
        device=device,
    )
    if mode == "discrete" and vocabulary_hash(lm.tokenizer) != manifest["vocabulary"]:
        raise ModelError(f"{source} holds another vocabulary than the one trained with; train again.")
    restore(lm, manifest, folder)
    if manifest["config"]["faults"]["no_cross_mask"]:
        warnings.warn(
            "this model attends to padding, as published: answers depend on the batch.", stacklevel=2
        )
    return PodModel(lm=lm, writer=writer, folder=folder, manifest=manifest)


def check_catalogue(manifest: Mapping[str, Any], writer: IdWriter, folder: Path) -> None:
    """Refuse a writer for another catalogue, or one that writes items otherwise.

    Raises:
        ModelError: If it is.
    """
    if writer.catalogue != manifest["catalogue"]:
        raise ModelError(
            f"{folder} was trained on another catalogue (hash {manifest['catalogue'][:12]}, these items have "
            f"{writer.catalogue[:12]}): other items, or the same under other codes. Read the data with the "
            "same seed, or train again."
        )
    if writer.fingerprint != manifest["ids"]:
        raise ModelError(
            f"{folder} was trained with other ids of its items; make them with the same options and seed."
        )


def restore(lm: LocalLM, manifest: Mapping[str, Any], folder: Path) -> None:
    """Give a loaded model what no standard file holds: whole-word rows, and published faults."""
    if manifest["whole_word"] is not None:
        from safetensors.torch import load_file

        from frugalrec.distillation.pod.whole_word import WholeWord, add_whole_word

        rows = WholeWord.from_facts(manifest["whole_word"])
        rows.load_state_dict(load_file(folder / ROWS))
        add_whole_word(lm, rows)
    if manifest["config"]["faults"]["no_cross_mask"]:
        drop_cross_mask(lm.network)


def drop_cross_mask(network: Any) -> None:
    """Let a decoder attend to padding, as the published code does."""

    def drop(_: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**given, "encoder_attention_mask": None}

    network.get_decoder().register_forward_pre_hook(drop, with_kwargs=True)
