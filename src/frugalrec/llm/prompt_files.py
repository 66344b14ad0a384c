"""Learned prompts on disk: vectors, or keys and values, and hashes of the model that they were made for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from frugalrec.errors import ModelError
from frugalrec.llm import adapters
from frugalrec.llm.models import sha256_of
from frugalrec.llm.prompt_vectors import TaskPrompt, add_prompt, learned_prompt
from frugalrec.runs import storage_errors, write_text

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

WEIGHTS = "prompt_vectors.safetensors"
MANIFEST = "frugalrec_prompt.json"
KV_PREFIX = "prefix-kv"
"""Kind of a prompt that is a prefix of keys and values (`llm.kv_prefix`), not vectors."""


def vocabulary_hash(tokenizer: Any) -> str:
    """Return a hash of a tokenizer's tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def save_prompt(lm: LocalLM, folder: Path, evidence: Mapping[str, Any] | None = None) -> None:
    """Write the learned prompt of a model: its vectors, and what they fit.

    Args:
        lm: A model with a learned prompt.
        folder: Where to write; files of an older prompt are replaced.
        evidence: Further facts, JSON-ready.

    Raises:
        ModelError: If the model has no learned prompt, or one of its values is no finite number.
    """
    prompt = learned_prompt(lm)
    if prompt is None:
        raise ModelError(f"{lm.model} reads no learned prompt; there is nothing to save.")
    facts = {"tasks": prompt.tasks, "n_vectors": prompt.n_vectors}
    write_prompt(lm, folder, {"weight": prompt.weight}, facts, evidence)


def write_prompt(
    lm: LocalLM,
    folder: Path,
    tables: Mapping[str, Tensor],
    facts: Mapping[str, Any],
    evidence: Mapping[str, Any] | None,
) -> None:
    """Write what was learned for a model, and what it fits; see `save_prompt`."""
    if not all(bool(torch.isfinite(table).all()) for table in tables.values()):
        raise ModelError("a prompt vector is no finite number; train with a lower rate.")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # without it, half-written vectors are no prompt
        plain = {name: table.detach().cpu().contiguous() for name, table in tables.items()}
        save_file(plain, str(folder / WEIGHTS))
    manifest = {
        **facts,
        "sha256": sha256_of(folder / WEIGHTS),
        "base": {"name": lm.model, "fingerprint": adapters.network_fingerprint(lm.network)},
        "adapter": _adapter_hash(lm),
        "vocabulary": _own_vocabulary(lm),
        "evidence": dict(evidence or {}),
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))


def load_prompt(lm: LocalLM, folder: Path) -> dict[str, Any]:
    """Put a saved prompt on the model that it was made for, in place; return its manifest.

    Raises:
        ModelError: If a file is missing or damaged, or model, adapter or vocabulary are others.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    path = folder / WEIGHTS
    if not path.is_file() or sha256_of(path) != manifest["sha256"]:
        state = "differs from what was written" if path.is_file() else "is missing"
        raise ModelError(f"{path} {state}; distil again, or fetch the prompt again.")
    found = adapters.network_fingerprint(lm.network)
    wanted = manifest["base"]["fingerprint"]
    if None not in (found, wanted) and found != wanted:
        raise ModelError(
            f"the prompt {folder} was made for {manifest['base']['name']} (fingerprint {wanted[:12]}...), "
            f"and this model is another one ({str(found)[:12]}...); load it with the model it was made for."
        )
    if _adapter_hash(lm) != manifest["adapter"]:
        said = [f"adapter {name[:12]}..." if name else "no adapter" for name in (manifest["adapter"],)]
        raise ModelError(
            f"the prompt {folder} was made for {manifest['base']['name']} with {said[0]}, and this model has "
            f"{_adapter_hash(lm) or 'none'}; load the model with the same adapter."
        )
    if vocabulary_hash(lm.tokenizer) != manifest["vocabulary"]:
        raise ModelError(
            f"the prompt {folder} was made with another vocabulary than that of {lm.model} "
            f"({len(lm.tokenizer):,} tokens); load the tokenizer it was made with."
        )
    tables = load_file(str(path))
    if manifest.get("kind") == KV_PREFIX:
        from frugalrec.llm.kv_prefix import KVPrefix, add_kv_prefix

        add_kv_prefix(lm, KVPrefix(tables["keys"], tables["values"], manifest["tokens"]))
    else:
        add_prompt(lm, TaskPrompt(manifest["tasks"], tables["weight"]))
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what was written about a prompt.

    Raises:
        ModelError: If there is none, or it is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise ModelError(f"{folder} holds no learned prompt: it has no {MANIFEST}.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = manifest["tasks"], manifest["base"]["fingerprint"], manifest["vocabulary"], manifest["sha256"]
        _ = manifest["adapter"], manifest["base"]["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}); distil again, or fetch it again.") from None
    return manifest


def _adapter_hash(lm: LocalLM) -> str | None:
    return None if lm.adapter is None else sha256_of(Path(lm.adapter) / adapters.WEIGHTS)


def _own_vocabulary(lm: LocalLM) -> str:
    """Return the hash of the vocabulary without the tokens of a learned prompt."""
    prompt = learned_prompt(lm)
    own = set() if prompt is None else set(prompt.tokens)
    tokens = sorted(pair for pair in lm.tokenizer.get_vocab().items() if pair[0] not in own)
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()
