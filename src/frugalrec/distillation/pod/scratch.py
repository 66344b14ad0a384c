"""A small T5 with random weights, and a tokenizer made for ids: to train from scratch, without downloads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frugalrec.distillation.pod.templates import SOMEONE, TEMPLATES
from frugalrec.errors import ConfigError, require

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
KNOWN, UNKNOWN = -1.0, -100.0
"""Log-probabilities of tokens."""
MARKS = ".,:;!?'\"()[]-_/&%+*#<>|="


def scratch_t5(
    folder: Path,
    *,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    feed_forward: int = 512,
    dropout: float = 0.1,
    digits: int = 2,
    symbols: Sequence[str] = (),
    words: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Write a T5 with random weights and its tokenizer to a folder, and return it.

    The tokenizer splits numbers into pieces of `digits` from the left, as SentencePiece does with the
    numbers of P5 and POD: ``item_7391`` is ``item``, ``_``, ``73``, ``91``. Words of the templates are one
    token each, other words are spelled.

    Args:
        folder: Where to write.
        width: Of states and embeddings.
        layers: Of the encoder, and of the decoder.
        heads: Attention heads, each of ``width / heads``.
        feed_forward: Width inside the feed-forward layers.
        dropout: Share of states that is dropped in training.
        digits: Longest piece of a number, 1 to 3.
        symbols: Further tokens, such as those of semantic codes (`ItemIds.symbols`).
        words: Further words that are one token each.
        seed: Of the weights.
    """
    if width % heads or not 1 <= digits <= 3:
        raise ConfigError(
            f"a width of {width} must be a multiple of heads={heads}, and digits={digits} lie in 1..3."
        )
    torch, transformers = require("torch", "llm"), require("transformers", "llm")
    from frugalrec.llm.conversion import quiet_transformers

    tokenizer = number_tokenizer(digits=digits, symbols=symbols, words=words)
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // heads,
        d_ff=feed_forward,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.T5ForConditionalGeneration(config)
    with quiet_transformers():
        network.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    return Path(folder)


def number_tokenizer(*, digits: int, symbols: Sequence[str] = (), words: Sequence[str] = ()) -> Any:
    """Return the tokenizer of `scratch_t5`; see there."""
    tokenizers, transformers = require("tokenizers", "llm"), require("transformers", "llm")
    told = {word for group in TEMPLATES.values() for text in group for word in text.split()}
    known = sorted({*told, *words, SOMEONE, "item", "user"} - {"{user}", "{items}"})
    numbers = [
        "".join(n) for size in range(1, digits + 1) for n in itertools.product("0123456789", repeat=size)
    ]
    single = [*LETTERS, *MARKS, "▁"]
    tokens = dict.fromkeys(["<pad>", "</s>", "<unk>", *single, *numbers])
    tokens |= dict.fromkeys([f"▁{text}" for text in (*known, *numbers)])
    tokens |= dict.fromkeys(known)
    core = tokenizers.Tokenizer(
        tokenizers.models.Unigram(
            # The fewest tokens win, whatever they are; spelling what is unknown costs more.
            [(token, UNKNOWN if token == "<unk>" else KNOWN) for token in tokens],
            unk_id=2,
            byte_fallback=False,
        )
    )
    core.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(rf"▁?\d{{1,{digits}}}"), "isolated"),
        ]
    )
    core.decoder = tokenizers.decoders.Metaspace(replacement="▁", prepend_scheme="always")
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    if symbols:
        # A blank before a code belongs to it: ids stand in texts with blanks between them.
        core.add_tokens([tokenizers.AddedToken(s, normalized=False, lstrip=True) for s in symbols])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
