"""How the nouns lie on disk: npz and JSON, never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frugalrec.runs import write_text
from frugalrec.types import Evaluation, Ranking, Selection


def save_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays to an npz file."""
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an npz file; a pickled array in it is refused."""
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def save_ranking(path: Path, ranking: Ranking) -> None:
    """Write a ranking."""
    save_arrays(path, users=ranking.users, items=ranking.items, scores=ranking.scores)


def load_ranking(path: Path) -> Ranking:
    """Read a ranking."""
    return Ranking(**load_arrays(path))


def save_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write per-user values (npz) and details (JSON beside it)."""
    values = {f"value:{name}": array for name, array in evaluation.values.items()}
    save_arrays(path, users=evaluation.users, **values)
    save_json(path.with_suffix(".json"), {"arm": evaluation.arm, "details": dict(evaluation.details)})


def load_evaluation(path: Path) -> Evaluation:
    """Read an evaluation."""
    arrays = load_arrays(path)
    about = load_json(path.with_suffix(".json"))
    values = {k.removeprefix("value:"): v for k, v in arrays.items() if k.startswith("value:")}
    return Evaluation(arm=about["arm"], users=arrays["users"], values=values, details=about["details"])


def save_selection(path: Path, selection: Selection) -> None:
    """Write a selection: kept rows, scores, and how they came about."""
    save_arrays(path, kept=selection.kept, scores=selection.scores)
    about = {"scorer": selection.scorer, "budget": selection.budget, "seed": selection.seed}
    save_json(path.with_suffix(".json"), about)


def load_selection(path: Path) -> Selection:
    """Read a selection."""
    arrays = load_arrays(path)
    return Selection(**arrays, **load_json(path.with_suffix(".json")))  # type: ignore[arg-type]


def save_json(path: Path, content: Any) -> None:
    """Write JSON, readable and whole."""
    write_text(path, json.dumps(content, indent=1, default=_plain))


def load_json(path: Path) -> Any:
    """Read JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)
