"""The checks behind `frugalrec doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

CORE = ("numpy", "scipy", "polars", "implicit", "typer", "pydantic", "matplotlib", "httpx")
EXTRA = ("torch", "transformers", "peft", "accelerate", "gguf")


def examine() -> list[dict[str, Any]]:
    """Return one row per check: name, ok, required, found, remedy."""
    rows = [
        _row("python", sys.version_info >= (3, 11), platform.python_version(), "use Python 3.11 or newer")
    ]
    for name in CORE:
        rows.append(_package(name, required=True, remedy="pip install frugalrec"))
    for name in EXTRA:
        rows.append(_package(name, required=False, remedy="pip install 'frugalrec[llm]'"))
    rows.append(_processor())
    rows.append(_memory())
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows.append(_row("disk", free > 2, f"{free:.0f} GiB free here", "runs and models want 2 GiB or more"))
    if all(row["ok"] for row in rows if row["name"] in EXTRA):
        rows += _llm_rows()
    return rows


def _row(name: str, ok: bool, found: str, remedy: str, required: bool = True) -> dict[str, Any]:
    return {"name": name, "ok": ok, "required": required, "found": found, "remedy": None if ok else remedy}


def _package(name: str, required: bool, remedy: str) -> dict[str, Any]:
    try:
        return _row(name, True, importlib.metadata.version(name), remedy, required)
    except importlib.metadata.PackageNotFoundError:
        return _row(name, False, "not installed", remedy, required)


def _processor() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    units = [u for u, flag in (("AVX-512", "avx512f"), ("bf16 matrix units", "amx_bf16")) if flag in flags]
    return _row("processor", True, ", ".join([f"{cores} cores", *units]), "")


def _memory() -> dict[str, Any]:
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return _row("memory", gib > 3, f"{gib:.0f} GiB", "the embedded LLM wants 4 GiB or more", required=False)


def _llm_rows() -> list[dict[str, Any]]:
    import torch

    from frugalrec.llm.models import list_models

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none (CPU is fine)"
    rows = [_row("accelerator", True, name, "")]
    for model in list_models():
        found = str(model["path"]) if model["fetched"] else "not fetched"
        remedy = f"frugalrec models get {model['name']}"
        rows.append(_row(model["name"], bool(model["fetched"]), found, remedy, required=False))
    return rows
