"""A distilled model as an ONNX graph; needs packages that nothing else here needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from frugalrec.distillation.export import export_model
from frugalrec.distillation.onnx import PACKAGES, export_onnx, run_onnx
from frugalrec.errors import MissingExtraError
from frugalrec.llm.local import LocalLM
from frugalrec.llm.prompt_vectors import TaskPrompt, add_prompt
from frugalrec.testing.tiny_models import tiny_llama

LACKING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install onnx onnxscript onnxruntime"):
        export_onnx(tmp_path, tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.skipif(bool(LACKING), reason=f"not installed: {', '.join(LACKING)}")
def test_onnx_runtime_gives_the_students_logits(tmp_path: Path) -> None:
    lm = LocalLM.load(tiny_llama(tmp_path / "model"), dtype="float32", device="cpu")
    prompt = TaskPrompt.uniform(["likes"], 3, 32, seed=0, bound=1.0)
    add_prompt(lm, prompt)
    export_model(lm, tmp_path / "plain")
    assert export_onnx(tmp_path / "plain", tmp_path / "onnx" / "model.onnx") < 1e-3
    ids = torch.tensor(lm.encode([f"{prompt.text('likes')}Films watched: Alien"]))
    with torch.no_grad():
        wanted = lm.network(ids).logits.numpy()
    found = run_onnx(tmp_path / "onnx" / "model.onnx", ids.numpy(), np.ones_like(ids.numpy()))
    np.testing.assert_allclose(found[..., : wanted.shape[-1]], wanted, atol=1e-3)
