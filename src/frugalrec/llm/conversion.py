"""Conversion of fetched weights into ordinary Hugging Face folders; GGUF files are de-quantised once."""

from __future__ import annotations

import math
import unittest.mock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from frugalrec.errors import ModelError, require


class Unpack(Protocol):
    """Turns extracted weights into a Hugging Face folder."""

    def __call__(self, weights: Path, target: Path, /, *, parameters: int) -> None:
        """Write the folder `target`, and refuse weights of another size than `parameters`."""


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


def adopt(weights: Path, target: Path, *, parameters: int) -> None:
    """Take over a folder that is a Hugging Face folder already.

    Args:
        weights: Its safetensors file.
        target: Where the folder is moved to.
        parameters: How many numbers the file must hold.

    Raises:
        ModelError: If it holds another number of them.
    """
    with require("safetensors", "llm").safe_open(str(weights), framework="pt") as file:
        found = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    if found != parameters:
        raise ModelError(f"{weights.name} holds {found:,} numbers, not {parameters:,}: it is another model.")
    weights.parent.rename(target)


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
