"""A plain Hugging Face folder as an ONNX graph: token ids and mask in, logits out.

Needs the packages onnx and onnxscript to write, and onnxruntime to run; the exporter is PyTorch's own.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from frugalrec.errors import MissingExtraError, ModelError
from frugalrec.llm.local import LocalLM
from frugalrec.runs import storage_errors
from frugalrec.tuning.reload import FLOAT32
from frugalrec.types import FloatArray

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LONGEST = 1 << 16


class _Logits(nn.Module):
    """A causal network without cache."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = self.network(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).logits
        return found


def export_onnx(folder: Path, out: Path) -> float:
    """Write a causal model as ONNX, float32, any number of texts of any length; padding is masked.

    Args:
        folder: A plain Hugging Face folder, such as `export_model` writes.
        out: The file to write; large weights go to a file beside it.

    Returns:
        The largest absolute difference of logits between the network and ONNX Runtime.

    Raises:
        MissingExtraError: If a package is not installed.
        ModelError: If the model has an encoder, or the graph answers otherwise.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"exporting to ONNX needs {', '.join(missing)}, not installed here. "
            f"Install with: pip install {' '.join(PACKAGES)}"
        )
    lm = LocalLM.load(folder, dtype="float32", device="cpu")
    if lm.is_encoder_decoder:
        raise ModelError(f"{folder} reads prompts with an encoder; only causal models are exported to ONNX.")
    network = _Logits(lm.network).eval()
    axes = {0: torch.export.Dim("batch", max=LONGEST), 1: torch.export.Dim("length", min=2, max=_most(lm))}
    names = ("input_ids", "attention_mask")
    with storage_errors(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's exporter, about itself
        out.parent.mkdir(parents=True, exist_ok=True)
        program: Any = torch.onnx.export(
            network,
            _inputs(lm, 2, 7),
            dynamo=True,
            dynamic_shapes={name: axes for name in names},
            input_names=list(names),
            output_names=["logits"],
            verbose=False,
        )
        program.save(str(out), external_data=_size(network) > (1 << 30))
    return _checked(network, lm, out)


def _most(lm: LocalLM) -> int:
    return min(lm.max_tokens or LONGEST, LONGEST)


def _size(network: nn.Module) -> int:
    """Return the bytes of the weights: a graph of more than 2 GB does not fit into one file."""
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def _inputs(lm: LocalLM, rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Return token ids and a mask that hides the last tokens of all rows but the first."""
    ids = torch.arange(rows * length).view(rows, length) % len(lm.tokenizer)
    mask = torch.ones_like(ids)
    mask[1:, -2:] = 0
    return ids, mask


def _checked(network: nn.Module, lm: LocalLM, path: Path) -> float:
    largest, size = 0.0, 1.0
    for rows, length in ((2, 7), (1, 12), (3, 5)):
        ids, mask = _inputs(lm, rows, length)
        with torch.no_grad():
            wanted = network(ids, mask).numpy()
        seen = mask.numpy().astype(bool)
        found = run_onnx(path, ids.numpy(), mask.numpy())
        largest = max(largest, float(np.abs((found - wanted)[seen]).max()))
        size = max(size, float(np.abs(wanted).max()))
    if not largest <= FLOAT32 * size:
        raise ModelError(
            f"the ONNX graph {path} answers otherwise (logits differ by up to {largest:.3g}, rounding "
            f"explains {FLOAT32 * size:.3g}); report your versions of torch and onnxscript."
        )
    return largest


def run_onnx(path: Path, ids: Any, mask: Any) -> FloatArray:
    """Return the logits that ONNX Runtime computes, (rows, length, vocabulary).

    Args:
        path: The graph.
        ids: Token ids, (rows, length) int64.
        mask: 1 where a token counts, of the same shape.
    """
    import onnxruntime  # type: ignore[import-not-found,unused-ignore]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: FloatArray = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
    return found
