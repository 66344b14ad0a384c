"""Shared fixtures: real data and the embedded LLM, each skipped with a reason where absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
# No test fails for being slow: on a busy machine any example may take longer than hypothesis allows.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FRUGALREC_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    pytest.importorskip("transformers", reason="needs frugalrec[llm]")
    from frugalrec.errors import FrugalrecError
    from frugalrec.llm import models

    try:
        return models.get("smollm2-135m")
    except FrugalrecError as error:
        pytest.skip(f"the embedded LLM cannot be had here: {error}")
