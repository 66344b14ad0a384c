"""Fresh LoRA matrices on a loaded model, for a while."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from frugalrec.errors import ModelError
from frugalrec.llm.loading import quiet_peft
from frugalrec.rng import derive_seed

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


@contextmanager
def with_lora(
    lm: LocalLM,
    rank: int,
    alpha: int,
    targets: str | Sequence[str],
    seed: int,
    *,
    use: tuple[str, ...] = ("selection", "effort", "lora"),
) -> Iterator[Any]:
    """Yield the model's network with LoRA layers: its own ones, or fresh ones for the while.

    Args:
        lm: The model.
        rank: Rank of fresh matrices.
        alpha: LoRA scale; updates are multiplied by alpha / rank.
        targets: Which layers get matrices, in PEFT's words.
        seed: Seed of fresh matrices.
        use: What they are for: each use draws others from the same seed.

    Raises:
        ModelError: If the network has no layer that the targets name.
    """
    import peft
    import torch

    network = lm.network
    if isinstance(network, peft.PeftModel):
        yield network.get_base_model()
        return
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="SEQ_2_SEQ_LM" if lm.is_encoder_decoder else "CAUSAL_LM",
    )
    flags = {parameter: parameter.requires_grad for parameter in network.parameters()}
    with torch.random.fork_rng(devices=[]), quiet_peft(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # PEFT sets it right itself
        torch.manual_seed(derive_seed(seed, *use))
        try:
            model = peft.get_peft_model(network, config)
        except ValueError as error:
            raise ModelError(
                f"{lm.model} has no layer for LoRA targets {targets!r}: {error} Give targets, the names of "
                'some of its linear layers, or "all-linear".'
            ) from error
    try:
        yield network
    finally:
        model.unload()
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
