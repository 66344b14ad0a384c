"""Tiny networks with random weights, written in a moment: real tokenizers, real transformers, no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frugalrec.errors import require

CORPUS = (
    "Films watched: Alien (1979), Heat (1995), Blade Runner (1982).",
    "Next film: The Matrix (1999)? Answer: Yes No",
    "The user liked the book and disliked the game. Yes. No. Recommend another film.",
    "the quick brown fox jumps over the lazy dog 0123456789",
)
CHAT = (
    "{% for m in messages %}<|user|>{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant:{% endif %}"
)


def tiny_tokenizer(*, start: bool = False) -> Any:
    """Return a byte-level BPE tokenizer of 384 tokens, trained here on four sentences.

    Args:
        start: Put a beginning-of-sequence token before each text, as LLaMA tokenizers do.
    """
    tokenizers, transformers = require("tokenizers", "llm"), require("transformers", "llm")
    special = ["<pad>", "</s>", "<s>", "<|user|>"]
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if start:
        core.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 2)]
        )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def tiny_llama(folder: Path, *, seed: int = 0, start: bool = False, **options: Any) -> Path:
    """Write a LLaMA with 2 layers of width 32 and random weights to `folder`, and return it.

    Args:
        folder: Where to write.
        seed: Of the weights.
        start: See `tiny_tokenizer`.
        options: Further options of ``transformers.LlamaConfig``.
    """
    torch, transformers = require("torch", "llm"), require("transformers", "llm")
    settings = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        # Wide enough that different prompts get clearly different answers.
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 2,
        **options,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    return _save(network, tiny_tokenizer(start=start), folder)


def tiny_qwen(folder: Path, *, seed: int = 0) -> Path:
    """Write a Qwen3 with 2 layers of width 32 and random weights to `folder`, and return it."""
    torch, transformers = require("torch", "llm"), require("transformers", "llm")
    config = transformers.Qwen3Config(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.Qwen3ForCausalLM(config)
    return _save(network, tiny_tokenizer(), folder)


def tiny_t5(folder: Path, *, seed: int = 0) -> Path:
    """Write an encoder-decoder (T5) with 2 + 2 layers of width 32 and random weights to `folder`."""
    torch, transformers = require("torch", "llm"), require("transformers", "llm")
    config = transformers.T5Config(
        vocab_size=384,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        initializer_factor=1.0,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.T5ForConditionalGeneration(config)
    return _save(network, tiny_tokenizer(), folder)


def _save(network: Any, tokenizer: Any, folder: Path) -> Path:
    from frugalrec.llm.conversion import quiet_transformers

    with quiet_transformers():
        network.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
    return folder
