"""Virtual environments for the libraries that benchmarks compare against.

A peer often pins older versions than ours, so it gets its own environment under
`benchmarks/.venvs/<name>` (ignored by git), made once, on first use.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

FOLDER = Path(__file__).parent / ".venvs"

RECTOOLS: tuple[str, ...] = ("torch==2.13.0", "numpy==1.26.4", "pandas==2.3.3", "rectools[torch]==0.19.0")
"""What the RecTools comparisons run against (environment name: `rectools`)."""


def peer_python(name: str, requirements: Sequence[str] = RECTOOLS) -> Path:
    """Return the Python of the environment `name`, creating it with `requirements` if needed.

    Safe to call from several processes at once: one builds, the others wait. An environment made
    from other requirements, or left half built, is made anew. Set `FRUGALREC_PEER_PYTHON` to the
    base interpreter if `python3.11` is not on the path.

    Args:
        name: Folder name under `benchmarks/.venvs`.
        requirements: What pip installs, in one resolution.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    home = FOLDER / name
    python = home / "bin" / "python"
    stamp = home / "requirements.json"
    with _locked(FOLDER / f"{name}.lock"):
        if stamp.exists() and json.loads(stamp.read_text()) == list(requirements):
            return python
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([_base_python(), "-m", "venv", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], check=True)
        stamp.write_text(json.dumps(list(requirements)))
    return python


def _base_python() -> str:
    chosen = os.environ.get("FRUGALREC_PEER_PYTHON")
    if chosen:
        return chosen
    return sys.executable if sys.version_info[:2] == (3, 11) else "python3.11"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
