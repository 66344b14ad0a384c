"""Copies of the base model, and what one with an adapter answers: the reload check asks both."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from frugalrec.errors import MissingExtraError, ModelError, require
from frugalrec.types import FloatArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query


SAME_MACHINE = 1e-5
"""What rounding explains where the same numbers are computed again in the same way: next to nothing.
Reloaded adapters were observed to answer the same to the last bit, in float32 and in bfloat16."""
FLOAT32, HALF = 1e-3, 0.1
"""What it explains on other hardware, with other versions, or with matrices merged into the weights."""


def fresh_copy(base: LocalLM, adapter: Path | None = None, *, four_bit: bool = False) -> LocalLM:
    """Return another copy of the base model; the caller's stays as it is.

    Args:
        base: A loaded model.
        adapter: An adapter to put on top.
        four_bit: Keep the copy's weights in 4 bits.

    Raises:
        ModelError: If 4 bits are asked for and there is no GPU.
        MissingExtraError: If 4 bits are asked for and bitsandbytes is not installed.
    """
    from frugalrec.llm import adapters, loading

    kind = cast(Any, base.dtype)
    if not four_bit:
        return type(base).load(
            base.source or base.model,
            adapter=adapter,
            dtype=kind,
            device=base.device,
            max_batch_tokens=base.max_batch_tokens,
        )
    check_four_bit()
    network, tokenizer = loading.load(base.source or base.model, dtype=kind, device="cuda", four_bit=True)
    return type(base)(
        (network if adapter is None else adapters.with_adapter(network, adapter)).eval(),
        tokenizer,
        model=base.model,
        source=base.source,
        adapter=adapter,
        max_batch_tokens=base.max_batch_tokens,
    )


def check_four_bit() -> None:
    """Check that this machine can keep weights in 4 bits.

    Raises:
        ModelError: If there is no CUDA device.
        MissingExtraError: If bitsandbytes is not installed.
    """
    if not require("torch", "llm").cuda.is_available():
        raise ModelError(
            "qlora keeps the base model in 4 bits, which needs a CUDA device, and there is none here; "
            "choose method=lora (with layers=4 or gradient_checkpointing=true where memory is short)."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            "qlora needs a package that is not installed. Install it with: pip install bitsandbytes"
        )


def log_probabilities(lm: LocalLM, queries: Sequence[Query]) -> list[FloatArray]:
    """Return what a model answers to queries, each (n_positions, n_targets), every prompt on its own."""
    import torch

    from frugalrec.llm.scoring import CausalScorer, Seq2SeqScorer

    options: dict[str, Any] = {"pad": lm.pad_id, "max_batch_tokens": lm.max_batch_tokens}
    scorer: Any = (
        Seq2SeqScorer(lm.network, **options)
        if lm.is_encoder_decoder
        else CausalScorer(lm.network, share_prefix=False, **options)
    )
    training = lm.network.training
    lm.network.eval()
    try:
        with torch.no_grad():
            # Alone in its batch, so that the numbers do not depend on how many queries there are.
            return [scorer.score([[query]])[0][0][0] for query in queries]
    finally:
        lm.network.train(training)


def difference(
    found: Sequence[FloatArray], wanted: Sequence[FloatArray], *, rounding: float
) -> tuple[float, float]:
    """Return the largest absolute difference of two sets of log-probabilities, and what rounding explains.

    Args:
        found: What a model answers.
        wanted: What it should answer.
        rounding: What it explains, as a share of the largest log-probability (at least of 1).
    """
    largest = max(float(np.abs(a - b).max()) for a, b in zip(found, wanted, strict=True))
    size = max(float(np.abs(values).max()) for values in wanted)
    return largest, rounding * max(1.0, size)


def check_reload(
    base: LocalLM,
    adapter: Path,
    queries: Sequence[Query],
    wanted: Sequence[FloatArray],
    *,
    four_bit: bool = False,
) -> float:
    """Load the adapter from disk on a fresh base model, ask as inference asks, and compare.

    Args:
        base: The model that was tuned.
        adapter: The adapter's folder.
        queries: What to ask.
        wanted: The trained model's answers, as `log_probabilities`.
        four_bit: The trained model had its base weights in 4 bits.

    Returns:
        The largest absolute difference of log-probabilities.

    Raises:
        ModelError: If it exceeds what rounding explains.
    """
    again = fresh_copy(base, adapter, four_bit=four_bit)
    largest, allowed = difference(log_probabilities(again, queries), wanted, rounding=SAME_MACHINE)
    if not largest <= allowed:
        raise ModelError(
            f"the saved adapter in {adapter} gives other answers than the trained model (log-probabilities "
            f"differ by up to {largest:.3g}). Tune again; if it recurs, report your peft version."
        )
    return largest
