"""Adapters on disk: what makes one whole, and the checks that every loading of one passes.

An adapter that does nothing looks like one that works: PEFT fills missing matrices with fresh ones and
only warns, and a model with all B = 0 answers as its base does. So names, shapes and values are
compared before an adapter is used, and, where this package wrote it, hashes and the base model too.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frugalrec.errors import ModelError, require
from frugalrec.llm.loading import quiet_peft
from frugalrec.llm.models import sha256_of

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MANIFEST = "frugalrec_adapter.json"

SAMPLED = 64
"""Values of each parameter that enter a network's fingerprint."""
ADDED = ("lora_", ".modules_to_save.", ".task_prompt.", ".kv_prefix.")
"""Parts of the names of parameters that are learned beside a base model's own."""


def network_fingerprint(network: Any) -> str | None:
    """Return a hash of what the base weights are, however they are stored or named by an adapter.

    Sixty-four values of each parameter, as bfloat16, so that the same model has the same fingerprint
    in float32 and in bfloat16, from a folder and from the hub, with an adapter and without.

    Returns:
        The hash, or None for a network in fewer than 16 bits.
    """
    torch = require("torch", "llm")
    if getattr(network, "is_quantized", False) or getattr(network.config, "quantization_config", None):
        return None
    digest = hashlib.sha256()
    for name, parameter in sorted(_base_parameters(network).items()):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLED)
        values = flat[::step][:SAMPLED].to(torch.bfloat16).cpu().view(torch.int16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


def _base_parameters(network: Any) -> dict[str, Any]:
    return {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): parameter
        for name, parameter in network.named_parameters()
        if not any(part in name for part in ADDED)
    }


def read_manifest(adapter: Path) -> dict[str, Any] | None:
    """Return what this package wrote about an adapter, or None where another program made it.

    Raises:
        ModelError: If the manifest is damaged.
    """
    path = Path(adapter) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _ = manifest["files"], manifest["base"]["fingerprint"], manifest["base"]["name"], manifest["probes"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}); tune again, or fetch the adapter again.") from None
    return manifest


def read_weights(adapter: Path) -> dict[str, Any]:
    """Return an adapter's tensors by name, checked against its manifest and for values that are no numbers.

    Raises:
        ModelError: If a file is missing, damaged, changed since it was written, or its values are not
            finite or all zero.
    """
    safetensors, torch = require("safetensors.torch", "llm"), require("torch", "llm")
    adapter = Path(adapter)
    if not (adapter / CONFIG).is_file():
        raise ModelError(f"{adapter} is not an adapter: it has no {CONFIG}.")
    path = adapter / WEIGHTS
    if not path.is_file():
        raise ModelError(
            f"the adapter {adapter} has no {WEIGHTS}; save it as safetensors (pickled weights are not read)."
        )
    manifest = read_manifest(adapter)
    for name, known in (manifest or {"files": {}})["files"].items():
        file = adapter / name
        if not file.is_file() or sha256_of(file) != known:
            state = "differs from what was written" if file.is_file() else "is missing"
            raise ModelError(
                f"{file} {state}: its SHA-256 is not {known[:12]}... The adapter is damaged or was changed; "
                "fetch it again, or tune again."
            )
    try:
        weights: dict[str, Any] = safetensors.load_file(str(path))
    except Exception as error:  # the library has its own error class, and truncation raises others
        raise ModelError(
            f"{path} is damaged or cut short: {error}. Fetch it again, or tune again."
        ) from error
    check_values(weights, str(adapter))
    broken = [name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ModelError(f"the adapter {adapter} holds values that are not finite numbers, in {broken[0]}.")
    return weights


def check_values(weights: Mapping[str, Any], where: str) -> None:
    """Refuse matrices that do nothing.

    Raises:
        ModelError: If there are no LoRA matrices, or every lora_B is zero.
    """
    outer = [tensor for name, tensor in weights.items() if "lora_B" in name or "lora_embedding_B" in name]
    if not outer:
        raise ModelError(f"the adapter {where} holds no LoRA matrices ({len(weights)} tensors in all).")
    if not any(bool(tensor.any()) for tensor in outer):
        raise ModelError(
            f"the adapter {where} does nothing: every lora_B matrix is zero. It was saved before tuning, "
            "or lost its weights; tune again."
        )


def check_base(adapter: Path, network: Any) -> None:
    """Refuse an adapter of another base model, where its manifest says which one it needs.

    Raises:
        ModelError: If the fingerprints differ.
    """
    manifest = read_manifest(adapter)
    wanted = None if manifest is None else manifest["base"]["fingerprint"]
    if manifest is None or wanted is None:
        return
    found = network_fingerprint(network)
    if found is not None and found != wanted:
        raise ModelError(
            f"the adapter {adapter} was tuned on {manifest['base']['name']} (fingerprint {wanted[:12]}...), "
            f"and this base model is another one ({found[:12]}...); load it with the model it was tuned on."
        )


def check_names(adapter: Path, weights: Mapping[str, Any], model: Any) -> None:
    """Compare the tensors of a file with those that a loaded PEFT model would save.

    Raises:
        ModelError: If tensors are missing, too many, or of another shape.
    """
    peft = require("peft", "llm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about embedding layers, which are not asked for
        wanted = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    base = _base_parameters(model)
    own = {name for name in weights if name.removeprefix("base_model.model.") not in base}
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(own - wanted.keys())
    shapes = [name for name in own & wanted.keys() if weights[name].shape != wanted[name].shape]
    for names, what in (
        (missing, "lacks"),
        (unknown, "holds what the model has no place for:"),
        (shapes, "has other shapes than the model for"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"the adapter {adapter} {what} {names[0]}{more}: it does not fit this model, or was saved "
                "wrongly; nothing was loaded."
            )


def with_adapter(network: Any, adapter: Path) -> Any:
    """Return the network with a PEFT adapter on top, after all checks of this module.

    Raises:
        ModelError: If the adapter is incomplete, damaged, without effect, or of another base model.
    """
    peft = require("peft", "llm")
    adapter = Path(adapter)
    weights = read_weights(adapter)
    check_base(adapter, network)
    try:
        with quiet_peft(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # refused below
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT sets it right itself
            model = peft.PeftModel.from_pretrained(network, str(adapter))
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ModelError(f"the adapter {adapter} does not fit the model: {error}") from error
    check_names(adapter, weights, model)
    return model
