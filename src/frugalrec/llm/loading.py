"""Loading of networks: device, number type and the hashes that identify them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from frugalrec.errors import ModelError, require
from frugalrec.llm import conversion, models

DType = Literal["auto", "float32", "bfloat16"]


def load(found: Path | str, *, dtype: DType, device: str, four_bit: bool = False) -> tuple[Any, Any]:
    """Return the network, on its device and ready to run, and the tokenizer, with a padding token.

    Args:
        found: What `models.find` returned.
        dtype: See `choose_dtype`.
        device: See `choose_device`.
        four_bit: Keep the weights in 4 bits (CUDA and bitsandbytes), and compute in `dtype`.
    """
    torch, transformers = require("torch", "llm"), require("transformers", "llm")
    place = choose_device(device)
    options: dict[str, Any] = {"trust_remote_code": False}
    try:
        with conversion.quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(str(found), **options)
            tokenizer = transformers.AutoTokenizer.from_pretrained(str(found), **options)
            family = (
                transformers.AutoModelForSeq2SeqLM
                if config.is_encoder_decoder
                else transformers.AutoModelForCausalLM
            )
            kind = getattr(torch, choose_dtype(dtype, place))
            network, facts = family.from_pretrained(
                str(found), dtype=kind, output_loading_info=True, **options
            )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the language model {str(found)!r} does not load: {error}") from error
    if lacking := sorted(facts["missing_keys"]):
        # transformers would fill in random numbers, and every answer would be noise.
        raise ModelError(
            f"{str(found)!r} is no language model: its weights lack {lacking[0]} ({len(lacking)} missing). "
            "A text encoder cannot answer questions; give a causal or encoder-decoder model."
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return (network if four_bit else network.to(place)).eval(), tokenizer


def fast_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 matrices in hardware (AMX, AVX-512 BF16, Arm BF16)."""
    torch = require("torch", "llm")
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    names = ("amx_bf16", "avx512_bf16", "bf16", "arm_bf16")
    if any(capabilities.get(name) for name in names):
        return True
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(getattr(torch.cpu, check, bool)()) for check in checks)


def choose_device(device: str) -> str:
    """Return the device to use: a GPU if ``"auto"`` finds one, else what was asked for."""
    torch = require("torch", "llm")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"there is no device {device!r} here: {reason}. Use auto or cpu.") from error
    return device


def choose_dtype(dtype: DType, device: str) -> str:
    """Return the number type to use: ``"auto"`` means bfloat16 where the hardware multiplies it."""
    if dtype in ("float32", "bfloat16"):
        return dtype
    if dtype != "auto":
        raise ModelError(f"dtype must be auto, float32 or bfloat16, not {dtype!r}.")
    torch = require("torch", "llm")
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if device == "cpu" and fast_bfloat16() else "float32"


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silence a deprecation between peft and transformers that no user can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        yield


def folder_hashes(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 of the files that decide what a model answers."""
    wanted = sorted(
        p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".model", ".txt", ".bin"}
    )
    hashes = {}
    for path in wanted:
        if path.name != models.MANIFEST:
            stat = path.stat()
            hashes[path.name] = _hash(path, stat.st_size, stat.st_mtime_ns)
    return hashes


@functools.lru_cache(maxsize=256)
def _hash(path: Path, size: int, modified_ns: int) -> str:
    return models.sha256_of(path)
