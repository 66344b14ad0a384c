"""Adapters that can be trusted: saved whole or not at all, with hashes and answers to check them by.

An adapter's folder holds PEFT's own two files and a manifest: the base model's fingerprint, the files'
SHA-256, and probes, some token sequences with the log-probabilities that the trained model gave. Anyone
who has the base model can compute these again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frugalrec.errors import ModelError
from frugalrec.llm.adapters import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    network_fingerprint,
    read_manifest,
    read_weights,
)
from frugalrec.llm.models import sha256_of
from frugalrec.runs import storage_errors, write_text
from frugalrec.tuning.reload import FLOAT32, HALF, check_reload, difference, fresh_copy, log_probabilities
from frugalrec.types import FloatArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query

ASIDE = ".saving"
EVIDENCE = "evidence.json"
"""What `adapt` writes beside an adapter once it is in place: how it was trained."""
N_PROBES = 4
"""Queries that a manifest keeps."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found; an adapter with a flaw is an error instead."""

    sha256: str
    """Hash of the weights."""
    base: str
    """Name of the base model that it was loaded on."""
    matrices: int
    """Tensors in the file."""
    idle: int
    """Matrices B that are all zero, and so do nothing."""
    probes: int
    """Queries that were asked again; 0 for an adapter without manifest."""
    difference: float
    """Largest absolute difference of their log-probabilities."""

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as a dictionary."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An adapter that was written aside, and what the trained model answered; see `write`."""

    folder: Path
    """Where it will go."""
    sha256: str
    """Hash of its weights."""
    probes: list[Query]
    answers: list[FloatArray]
    """Log-probabilities of the probes."""
    four_bit: bool

    @property
    def aside(self) -> Path:
        """Where it is until it has been checked."""
        return self.folder / ASIDE


def write(lm: LocalLM, folder: Path, queries: Sequence[Query], *, base: LocalLM, key: str = "") -> Draft:
    """Write the adapter of a trained model aside; `publish` checks it and puts it in place.

    Args:
        lm: The trained model: its network is a PEFT model.
        folder: Where the adapter will go; what else lies there stays.
        queries: What to compare by; the first few are kept as probes.
        base: The model that was tuned, plain.
        key: What identifies the tuning run, for the manifest.

    Raises:
        ModelError: If the adapter does nothing, or holds values that are no numbers.
    """
    from frugalrec.tuning.lora import adapter_weights

    check_trained(adapter_weights(lm.network))
    aside, probes = folder / ASIDE, list(queries)[:N_PROBES]
    answers = log_probabilities(lm, probes)
    with storage_errors(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for settings in lm.network.peft_config.values():
            settings.base_model_name_or_path = base.model  # as it was asked for, not where it is cached
        lm.network.save_pretrained(aside, safe_serialization=True, save_embedding_layers=False)
        hashes = {name: sha256_of(aside / name) for name in (CONFIG, WEIGHTS)}
        manifest = {"key": key, **_manifest(lm, base, hashes, probes, answers)}
        write_text(aside / MANIFEST, json.dumps(manifest, indent=1))
    four_bit = bool(manifest["base"]["four_bit"])
    return Draft(folder=folder, sha256=hashes[WEIGHTS], probes=probes, answers=answers, four_bit=four_bit)


def publish(draft: Draft, base: LocalLM) -> float:
    """Load a draft on a fresh copy of the base model, compare its answers, and only then put it in place.

    Returns:
        The largest absolute difference of log-probabilities.

    Raises:
        ModelError: If it answers otherwise than the trained model; nothing is put in place then.
    """
    aside = draft.aside
    try:
        changed = check_reload(base, aside, draft.probes, draft.answers, four_bit=draft.four_bit)
        with storage_errors(draft.folder):
            # Of an earlier adapter; its evidence first, lest it be taken for that of the new one.
            for name in (EVIDENCE, CONFIG, MANIFEST):
                (draft.folder / name).unlink(missing_ok=True)
            # No loader takes a folder without configuration, so that comes last.
            for name in (MANIFEST, WEIGHTS, CONFIG):
                with (aside / name).open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(aside / name, draft.folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return changed


def check_trained(matrices: dict[str, Any]) -> None:
    """Refuse matrices that training left useless.

    Raises:
        ModelError: If every lora_B is zero, or a value is not a finite number.
    """
    import torch

    if not any(bool(m.any()) for name, m in matrices.items() if "lora_B" in name):
        raise ModelError("every lora_B matrix is zero: nothing was learned. Raise epochs or learning_rate.")
    if not all(bool(torch.isfinite(m).all()) for m in matrices.values()):
        raise ModelError("the adapter holds values that are not finite numbers. Lower learning_rate.")


def _manifest(
    lm: LocalLM,
    base: LocalLM,
    hashes: dict[str, str],
    probes: Sequence[Query],
    answers: Sequence[FloatArray],
) -> dict[str, Any]:
    return {
        "format": 1,
        "base": {
            "name": base.model,
            "fingerprint": network_fingerprint(base.network),
            "dtype": lm.dtype,
            "four_bit": bool(getattr(lm.network, "is_quantized", False)),
        },
        "files": hashes,
        "probes": [
            {
                "tokens": list(query.tokens),
                "decoder": list(query.decoder),
                "positions": list(query.positions),
                "targets": query.targets.tolist(),
                "log_probabilities": values.tolist(),
            }
            for query, values in zip(probes, answers, strict=True)
        ],
        "versions": {name: version(name) for name in ("frugalrec", "torch", "transformers", "peft")},
    }


def verify(adapter: Path, base: LocalLM | None = None) -> Verified:
    """Check an adapter from end to end: files, hashes, names, shapes, values, base model, answers.

    Args:
        adapter: The adapter's folder.
        base: The plain base model; default: the one that the manifest or PEFT's configuration names.

    Raises:
        ModelError: At the first flaw, naming it.
    """
    import torch

    adapter = Path(adapter)
    weights, manifest = read_weights(adapter), read_manifest(adapter)
    tuned = _with_base(adapter, manifest, base)
    probes, wanted = manifest_probes(manifest)
    largest = 0.0
    if manifest is not None and probes:
        exact = tuned.dtype == manifest["base"]["dtype"] == "float32"
        rounding = FLOAT32 if exact else HALF
        largest, allowed = difference(log_probabilities(tuned, probes), wanted, rounding=rounding)
        if not largest <= allowed:
            raise ModelError(
                f"the adapter {adapter} gives other answers than when it was saved (log-probabilities "
                f"differ by up to {largest:.3g}, rounding explains {allowed:.3g}); tune again, or use the "
                f"versions {manifest['versions']}."
            )
    return Verified(
        sha256=sha256_of(adapter / WEIGHTS),
        base=tuned.model,
        matrices=len(weights),
        idle=sum(not bool(torch.any(m)) for name, m in weights.items() if "lora_B" in name),
        probes=len(probes),
        difference=largest,
    )


def _with_base(adapter: Path, manifest: dict[str, Any] | None, base: LocalLM | None) -> LocalLM:
    """Load the adapter on a base model: the given one, or the one that it names."""
    if manifest is not None and manifest["base"]["four_bit"]:
        return fresh_copy(base or base_of(adapter, "auto", device="cpu"), adapter, four_bit=True)
    if base is not None:
        return fresh_copy(base, adapter)
    return base_of(adapter, "auto" if manifest is None else manifest["base"]["dtype"], adapter_on_top=True)


def base_of(adapter: Path, dtype: str, *, device: str = "auto", adapter_on_top: bool = False) -> LocalLM:
    """Load the base model that an adapter names.

    Args:
        adapter: The adapter's folder.
        dtype: See `LocalLM.load`.
        device: See `LocalLM.load`.
        adapter_on_top: Load the adapter too.

    Raises:
        ModelError: If it names none, or there is no such model here.
    """
    from frugalrec.llm.local import LocalLM

    adapter = Path(adapter)
    if not (adapter / CONFIG).is_file():
        raise ModelError(f"{adapter} is not an adapter: it has no {CONFIG}.")
    manifest = read_manifest(adapter)
    try:
        settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{adapter / CONFIG} is damaged ({error}); fetch the adapter again.") from None
    name = settings.get("base_model_name_or_path") if manifest is None else manifest["base"]["name"]
    if not name:
        raise ModelError(f"the adapter {adapter} does not say which base model it needs; name it with --llm.")
    top = adapter if adapter_on_top else None
    return LocalLM.load(name, adapter=top, dtype=dtype, device=device)  # type: ignore[arg-type]


def manifest_probes(manifest: dict[str, Any] | None) -> tuple[list[Query], list[FloatArray]]:
    """Return the queries of a manifest and what the trained model answered; none without manifest."""
    from frugalrec.llm.scoring import Query

    queries, wanted = [], []
    for probe in (manifest or {"probes": []})["probes"]:
        queries.append(
            Query(
                tokens=tuple(probe["tokens"]),
                decoder=tuple(probe["decoder"]),
                positions=tuple(probe["positions"]),
                targets=np.array(probe["targets"], dtype=np.int64),
            )
        )
        wanted.append(np.array(probe["log_probabilities"], dtype=np.float32))
    return queries, wanted
