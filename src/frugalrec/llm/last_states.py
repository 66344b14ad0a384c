"""The state that a prompt ends in: one forward pass, no output layer, nothing generated.

A causal network's is that of the prompt's last token. An encoder-decoder's is that of its decoder's start
token, which has seen all encoder states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frugalrec.llm.queries import decoder_start
from frugalrec.llm.scoring import padded

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


def last_states(lm: LocalLM, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Return the final state (after the last norm) of each prompt, (n, width) float32; one padded batch.

    Gradients flow if they are on, so a head can be trained on it.

    Args:
        lm: The model; adapters on it take part.
        prompts: Token ids, at least one each.
    """
    network: Any = lm.network
    if hasattr(network, "get_base_model"):  # PEFT's wrapper; its layers stay in
        network = network.get_base_model()
    ids, mask = padded(prompts, lm.pad_id, lm.network.device)
    if not lm.is_encoder_decoder:
        # Padding stands on the right, where causal attention never looks.
        states = network.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        rows = torch.arange(len(prompts), device=ids.device)
        last: Tensor = states[rows, mask.sum(dim=1) - 1]
        return last.float()
    states = network.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
    start = torch.full((len(prompts), 1), decoder_start(lm), device=ids.device)
    decoded: Tensor = network.get_decoder()(
        input_ids=start, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    return decoded[:, 0].float()
