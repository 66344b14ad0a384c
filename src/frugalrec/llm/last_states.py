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
    decoder = network.get_decoder()
    if _is_plain_t5(decoder):
        return _t5_start(decoder, start[:, 0], states, mask).float()
    decoded: Tensor = decoder(
        input_ids=start, encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    return decoded[:, 0].float()


def _is_plain_t5(decoder: Any) -> bool:
    """Return whether a decoder is T5's, with cross-attention that no adapter has changed."""
    if type(decoder).__name__ != "T5Stack" or decoder.training or decoder.dtype == torch.float16:
        return False
    crosses = [block.layer[1].EncDecAttention for block in decoder.block]
    return all(type(part) is torch.nn.Linear for cross in crosses for part in (cross.k, cross.v))


def _t5_start(decoder: Any, tokens: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Return the final state of a T5 decoder's first token, (n, width), without keys and values.

    One query is turned back through the key matrix to meet the encoder states as they are, and what it
    sees of them goes through the value matrix afterwards: q . (K x) = (K' q) . x. That saves two products
    a layer of the size of the prompt. The token itself sees nothing but itself.
    """
    state = decoder.embed_tokens(tokens)
    hidden = torch.zeros_like(mask, dtype=state.dtype).masked_fill_(mask == 0, torch.finfo(state.dtype).min)
    for block in decoder.block:
        own, cross, feed = block.layer
        state = state + own.SelfAttention.o(own.SelfAttention.v(own.layer_norm(state)))
        part = cross.EncDecAttention
        heads = (part.n_heads, part.key_value_proj_dim, states.shape[2])
        query = part.q(cross.layer_norm(state)).view(-1, *heads[:2])
        scores = torch.einsum("nhk,hkd->nhd", query, part.k.weight.view(heads)) @ states.transpose(1, 2)
        seen = (scores + hidden[:, None]).softmax(dim=-1) @ states
        values = torch.einsum("nhd,hkd->nhk", seen, part.v.weight.view(heads))
        state = feed(state + part.o(values.flatten(1)))
    final: Tensor = decoder.final_layer_norm(state)
    return final
