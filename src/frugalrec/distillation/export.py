"""A learned prompt for elsewhere: its vectors become rows of the vocabulary, in a plain Hugging Face folder.

Whoever loads the folder needs nothing of this package: a text that holds the vectors' tokens gives the
same logits over the original vocabulary. The output layer gets a matrix of its own, so that the new
tokens are no likelier than the least likely old one, and `generate` is told never to write them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from frugalrec.errors import ModelError
from frugalrec.llm.prompt_vectors import PromptedEmbedding
from frugalrec.tuning.deliver import new_folder
from frugalrec.tuning.reload import FLOAT32, HALF

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

NEVER = -1e4
"""Bias of the new tokens, where the output layer has biases."""
PROBES = (
    "Recommend the next film. Films watched, oldest first: Alien; Heat\nNext film:",
    'Movies liked: "Fargo (1996)".\nWill they like the movie "Psycho (1960)"? Answer:',
)


def export_model(lm: LocalLM, out: Path, texts: Sequence[str] = PROBES) -> float:
    """Write a model with its adapter and its learned prompt as a plain Hugging Face folder.

    Args:
        lm: A model that reads a learned prompt; it is left as it is.
        out: The folder to write; it must be new or empty.
        texts: What both models are asked; each is read bare and behind every task's vectors.

    Returns:
        The largest absolute difference of logits over the original vocabulary between both.

    Raises:
        ModelError: If the model reads no learned prompt, or the written one answers otherwise.
        StorageError: If the folder holds other files.
    """
    from frugalrec.llm.conversion import quiet_transformers

    layer = lm.network.get_input_embeddings()
    if not isinstance(layer, PromptedEmbedding):
        raise ModelError(f"{lm.model} reads no prompt vectors; only these become rows of a vocabulary.")
    prompts = ["", *map(layer.task_prompt.text, layer.task_prompt.tasks)]
    rows = lm.encode([prompt + text for prompt in prompts for text in texts])
    wanted = [_logits(lm, lm.network, row) for row in rows]
    network = copy.deepcopy(lm.network)
    prompted = network.get_input_embeddings()
    network.set_input_embeddings(prompted.base_layer)  # PEFT takes whatever has a base_layer for its own
    if hasattr(network, "merge_and_unload"):
        network = network.merge_and_unload(safe_merge=True)
    _merge(network, prompted, torch.cat(wanted))
    with new_folder(out) as aside, quiet_transformers():
        network.save_pretrained(str(aside))
        lm.tokenizer.save_pretrained(str(aside))
        again = type(lm).load(aside, dtype=lm.dtype, device=lm.device)  # type: ignore[arg-type]
        largest = _compared(lm, again, rows, wanted)
    return largest


def _compared(lm: LocalLM, again: LocalLM, rows: Sequence[list[int]], wanted: Sequence[Tensor]) -> float:
    allowed = (FLOAT32 if lm.dtype == "float32" else HALF) * max(1.0, *(float(w.abs().max()) for w in wanted))
    found = [
        _logits(again, again.network, row)[:, : want.shape[1]] for row, want in zip(rows, wanted, strict=True)
    ]
    largest = max(float((f - w).abs().max()) for f, w in zip(found, wanted, strict=True))
    if not largest <= allowed:
        raise ModelError(
            f"the exported model answers otherwise (logits differ by up to {largest:.3g}, rounding explains "
            f"{allowed:.3g}); export in float32."
        )
    return largest


@torch.no_grad()
def _merge(network: Any, prompted: PromptedEmbedding, logits: Tensor) -> None:
    """Turn learned vectors into rows of the embedding, and give the output layer its own matrix."""
    base, start = prompted.base_layer, prompted.start
    vectors = prompted.task_prompt.weight.flatten(0, 1)
    scale = torch.as_tensor(getattr(base, "embed_scale", 1.0)).to(vectors)  # it multiplies what is looked up
    table, head = base.weight.detach(), network.get_output_embeddings()
    stop = start + len(vectors)
    rows = table.new_zeros(max(stop, len(table)), table.shape[1])
    rows[: len(table)] = table
    rows[start:stop] = (vectors / scale).to(table)
    base.weight, base.num_embeddings = nn.Parameter(rows), len(rows)
    old, missing = head.weight.detach(), len(rows) - len(head.weight)
    # A copy of the row that the output layer likes least: never above it, whatever the text.
    least = int(logits[:, :start].max(dim=0).values.argmin())
    head.weight = nn.Parameter(torch.cat([old, old[least].expand(max(missing, 0), -1)]))
    if getattr(head, "bias", None) is not None:
        head.bias = nn.Parameter(torch.cat([head.bias, head.bias.new_full((max(missing, 0),), NEVER)]))
    head.out_features = len(head.weight)
    for config in (network.config, network.config.get_text_config()):
        config.vocab_size, config.tie_word_embeddings = len(rows), False
    settings = network.generation_config
    settings.suppress_tokens = [*(settings.suppress_tokens or []), *range(start, stop)]


def _logits(lm: LocalLM, network: Any, ids: Sequence[int]) -> Tensor:
    """Return the logits after every token (an encoder-decoder: after its start), (n, vocabulary)."""
    from frugalrec.llm.queries import decoder_start

    text = torch.tensor([list(ids)], device=network.device)
    inputs = {"input_ids": text}
    if lm.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[decoder_start(lm)]], device=network.device)
    with lm._running():
        found: Tensor = network(**inputs, use_cache=False).logits[0].float().cpu()
    return found
