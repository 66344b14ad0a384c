"""A trained POD model on disk: standard folders for network or adapter and prompt, and one manifest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from frugalrec.distillation.pod.model import ADAPTER, MANIFEST, MODEL, PROMPT, ROWS, TRAINS_ALL
from frugalrec.distillation.pod.whole_word import whole_word
from frugalrec.errors import ModelError
from frugalrec.llm.adapters import network_fingerprint
from frugalrec.llm.conversion import quiet_transformers
from frugalrec.llm.kv_prefix import kv_prefix, save_kv_prefix
from frugalrec.llm.models import sha256_of
from frugalrec.llm.prompt_files import save_prompt, vocabulary_hash
from frugalrec.llm.prompt_vectors import add_prompt, learned_prompt, remove_prompt
from frugalrec.runs import storage_errors, write_text
from frugalrec.tuning.trained import trained_weights

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


def write_pod(lm: LocalLM, base: LocalLM, out: Path, manifest: Mapping[str, Any]) -> None:
    """Write a trained model; without its manifest, which comes last, a folder is no model.

    Args:
        lm: The trained copy, as training left it.
        base: The model that training began with.
        out: Where to write.
        manifest: What is to be said of it.

    Raises:
        ModelError: If a trained value is no finite number.
    """
    for name, values in trained_weights(lm.network).items():
        if not bool(values.isfinite().all()):
            raise ModelError(f"{name} is no finite number after training; train with a lower rate.")
    mode = manifest["config"]["mode"]
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        for folder in (MODEL, ADAPTER, PROMPT):
            shutil.rmtree(out / folder, ignore_errors=True)
        rows = whole_word(lm)
        if rows is not None:
            save_file({name: t.detach().cpu() for name, t in rows.state_dict().items()}, out / ROWS)
        _write_parts(lm, base, out, mode)
    names = [path.relative_to(out) for path in sorted(out.rglob("*.safetensors"))]
    files = {str(name): sha256_of(out / name) for name in names if name.parts[0] != "checkpoints"}
    said = {
        **manifest,
        "base": {
            "name": base.model,
            "source": str(base.source or base.model),
            "fingerprint": network_fingerprint(base.network),
        },
        "vocabulary": vocabulary_hash(base.tokenizer),
        "files": files,
    }
    write_text(out / MANIFEST, json.dumps(said, indent=1))


def _write_parts(lm: LocalLM, base: LocalLM, out: Path, mode: str) -> None:
    """Write network, adapter and prompt, each as the loaders of this package read it."""
    from frugalrec.llm.local import LocalLM

    if mode == "prefix-kv":
        prefix = kv_prefix(lm)
        if prefix is None:
            raise ModelError(f"{lm.model} has lost its prefix; train again.")
        save_kv_prefix(lm, out / PROMPT)
        return
    prompt = learned_prompt(lm)
    if prompt is None and mode != "discrete":
        raise ModelError(f"{lm.model} has lost its learned prompt; train again.")
    if prompt is not None:
        remove_prompt(lm)
    lm.tokenizer = base.tokenizer
    with quiet_transformers():
        if mode in TRAINS_ALL:
            lm.network.save_pretrained(str(out / MODEL))
            lm.tokenizer.save_pretrained(str(out / MODEL))
        elif mode == "lora+prompt":
            for settings in lm.network.peft_config.values():
                settings.base_model_name_or_path = base.model
            lm.network.save_pretrained(
                str(out / ADAPTER), safe_serialization=True, save_embedding_layers=False
            )
        if prompt is None:
            return
        # The prompt's file names what it was made for: the network as it was just saved.
        source = out / MODEL if mode in TRAINS_ALL else base.source or base.model
        adapter = out / ADAPTER if mode == "lora+prompt" else None
        dtype: Any = base.dtype
        saved = LocalLM.load(source, adapter=adapter, dtype=dtype, device="cpu")
    saved.model = saved.model if mode in TRAINS_ALL else lm.model
    add_prompt(saved, prompt)
    save_prompt(saved, out / PROMPT)
