"""LoRA matrices on a network: where they go, how they are scaled, and their values."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

from frugalrec.errors import ConfigError, ModelError
from frugalrec.llm.adapters import CONFIG, check_base, check_names
from frugalrec.llm.loading import quiet_peft
from frugalrec.tuning.options import Method

ALL_LINEAR = "all-linear"
SCALE = {
    "r": "rank",
    "lora_alpha": "alpha",
    "use_rslora": "method",
    "use_dora": "method",
    "rank_pattern": "rank",
    "alpha_pattern": "alpha",
}
"""Fields of PEFT's configuration that say what matrices mean -> the option that sets them."""


def add_lora(
    model: Any,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: str | Sequence[str],
    seed: int,
    layers: int | None = None,
    method: Method = "lora",
) -> Any:
    """Return the model with fresh LoRA matrices; the base weights are frozen.

    Args:
        model: A transformers network.
        rank: Rank of the matrices.
        alpha: LoRA scale.
        dropout: Share of their inputs that is dropped while training.
        targets: Which modules get matrices: `all-linear`, or the last parts of their names.
        seed: Seed of the matrices.
        layers: Only in so many top layers; default: in all.
        method: See `TuningOptions.method`; `qlora` is plain LoRA here, on a base loaded in 4 bits.

    Raises:
        ModelError: If the network has no module that the targets name.
    """
    torch.manual_seed(seed)
    # PEFT would read a single name as a pattern of whole names.
    modules = (
        ALL_LINEAR if targets == ALL_LINEAR else [targets] if isinstance(targets, str) else list(targets)
    )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=modules if layers is None else top_targets(model, layers, targets),
        use_rslora=method == "rslora",
        use_dora=method == "dora",
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    with quiet_peft(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT sets it right itself
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise ModelError(
                f"the model has no layer for LoRA targets {targets!r}: {error} Give target_modules, the "
                f"names of some of its linear layers, or {ALL_LINEAR}."
            ) from error


def layer_list(network: Any) -> Any:
    """Return the list of a network's layers (an encoder-decoder: of its decoder), lowest first.

    Raises:
        ModelError: If it cannot be found.
    """
    config = network.config.get_text_config()
    stack, count = network, int(config.num_hidden_layers)
    if network.config.is_encoder_decoder:
        stack = network.get_decoder()
        own = (getattr(config, name, None) for name in ("num_decoder_layers", "decoder_layers"))
        count = next((int(n) for n in own if n), count)
    for module in stack.modules():  # outer lists come first
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise ModelError(f"the network has no list of {count} layers; leave layers unset to tune all of it.")


def top_layers(network: Any, layers: int) -> list[Any]:
    """Return the top layers of a network, lowest first.

    Raises:
        ConfigError: If it has fewer.
        ModelError: If its layers cannot be found.
    """
    found = list(layer_list(network))
    if not 1 <= layers <= len(found):
        raise ConfigError(
            f"the network has {len(found)} layers; tune 1 to {len(found)} of them, not {layers}."
        )
    return found[len(found) - layers :]


def top_targets(network: Any, layers: int, targets: str | Sequence[str] = ALL_LINEAR) -> list[str]:
    """Return the whole names of linear modules in the top layers: PEFT takes a list of such.

    Args:
        network: A transformers network without adapter.
        layers: How many layers count, from the top.
        targets: `all-linear`, or the last parts of module names that are wanted.

    Raises:
        ModelError: If there is none.
    """
    inside = {id(part) for layer in top_layers(network, layers) for part in layer.modules()}
    wanted = [targets] if isinstance(targets, str) else list(targets)
    found = [
        name
        for name, module in network.named_modules()
        if id(module) in inside
        and (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        and (targets == ALL_LINEAR or any(f".{name}".endswith(f".{end}") for end in wanted))
    ]
    if not found:
        raise ModelError(f"the top {layers} layers hold no linear layer {targets!r} for LoRA matrices.")
    return found


def compute_dtype(model: Any) -> torch.dtype:
    """Return the dtype of the base model's weights (adapters may be kept in another)."""
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype
    return dtype


def adapter_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of the LoRA matrices by parameter name."""
    return {
        name: parameter.detach().clone().contiguous()
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }


def start_from(model: Any, weights: Mapping[str, torch.Tensor], adapter: Path) -> None:
    """Give fresh LoRA matrices the values of a saved adapter.

    Args:
        model: The model with fresh matrices.
        weights: The adapter's tensors, as `adapters.read_weights`.
        adapter: Its folder.

    Raises:
        ModelError: If it was tuned on another base model or scaled otherwise, or if names or shapes
            differ: rank, alpha, method, target_modules and layers must be the same.
    """
    check_base(adapter, model)
    _check_scale(model, adapter)
    check_names(adapter, weights, model)
    result = set_peft_model_state_dict(model, dict(weights))
    if result.unexpected_keys:
        raise ModelError(f"the adapter {adapter} holds {result.unexpected_keys[0]}, which has no place here.")


def _check_scale(model: Any, adapter: Path) -> None:
    """Compare what matrices are multiplied by: it stands in PEFT's configuration, not in the weights."""
    try:
        saved = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{adapter / CONFIG} is damaged ({error}); tune the first stage again.") from None
    (own,) = model.peft_config.values()
    for name, option in SCALE.items():
        found, wanted = saved.get(name) or False, getattr(own, name) or False
        if found != wanted:
            raise ModelError(
                f"the adapter {adapter} that tuning starts from has {name}={found}, and the options say "
                f"{wanted}: its matrices would mean something else. Give both stages the same {option}."
            )


def recompute_layers(model: Any) -> None:
    """Keep only what enters each layer, and compute the rest again where gradients need it."""
    base = model.get_base_model()
    settings = {"use_reentrant": False}
    if hasattr(base, "activation_checkpointing_enable"):  # the name since transformers 5.2x
        base.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
    else:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
