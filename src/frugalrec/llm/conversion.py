"""Conversion of GGUF files: de-quantised once into an ordinary Hugging Face folder."""

from __future__ import annotations

import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frugalrec.errors import ModelError


def convert(gguf: Path, target: Path, *, parameters: int, splits_digits: bool) -> None:
    """Write a Hugging Face folder: bfloat16 safetensors, configuration and tokenizer.

    Args:
        gguf: The file to read.
        target: The folder to write.
        parameters: How many the network must have; a check on the conversion.
        splits_digits: Whether the tokenizer splits numbers into digits, which GGUF files do not say.

    Raises:
        ModelError: If something else than the expected network came out.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers(), _quiet_tqdm():
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
        network = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16, **_unpacked()
        )
        if splits_digits:
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            )
        tokenizer.model_max_length = network.config.max_position_embeddings
        if hasattr(network.config, "quantization_config"):
            # Left in, the saved folder would claim to be quantised and not load as a plain model.
            del network.config.quantization_config
        network.hf_quantizer = None
        network.save_pretrained(str(target), safe_serialization=True)
        tokenizer.save_pretrained(str(target))
    found = sum(p.numel() for p in network.parameters())
    if found != parameters or network.dtype != torch.bfloat16:
        raise ModelError(
            f"converting {gguf.name} gave {found:,} parameters in {network.dtype}, not "
            f"{parameters:,} in bfloat16: this version of transformers reads GGUF files differently. "
            "Install another one, for example transformers 5.23."
        )


@contextmanager
def _quiet_tqdm() -> Iterator[None]:
    """Silence the one progress bar of the GGUF reader that ignores the settings of transformers."""
    try:
        from transformers import modeling_gguf_pytorch_utils as reader
    except ImportError:
        yield
        return
    with unittest.mock.patch.object(reader, "tqdm", lambda tensors, **_: tensors, create=True):
        yield


def _unpacked() -> dict[str, Any]:
    """Return the option that makes newer versions of transformers de-quantise, which older ones do anyway."""
    import transformers

    settings = getattr(transformers, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and advice that transformers prints while it loads a model."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
