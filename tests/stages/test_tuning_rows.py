"""Rows to tune on, drawn from prompt files: what validation asks for must not have been trained."""

import json
import re

import numpy as np
import pytest

from frugalrec.errors import DataError
from frugalrec.stages.tuning_rows import from_prompts

WINDOW = 4


def row(events):
    """Write ten ratings and the one that follows as a prompt file does."""
    liked, disliked = (
        ", ".join(f'"{title}"' for title, like in events[:-1] if like is kind) for kind in (True, False)
    )
    target, like = events[-1]
    return {
        "instruction": "Given the user's preference and unpreference, identify whether ...",
        "input": f"User Preference: {liked}\nUser Unpreference: {disliked}\n"
        f'Whether the user will like the target movie "{target}"?',
        "output": "Yes." if like else "No.",
    }


@pytest.fixture
def windows(tmp_path):
    """Overlapping windows of twelve users, whose titles say whose they are; 3 to 9 rows each."""
    rng = np.random.default_rng(0)
    rows, sizes = [], []
    for user in range(12):
        sizes.append(int(rng.integers(3, 10)))
        events = [
            (f"film {number} of user {user}", bool(rng.random() < 0.5))
            for number in range(WINDOW + sizes[-1])
        ]
        rows += [row(events[at - WINDOW : at + 1]) for at in range(WINDOW, len(events))]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    return path, sizes


def drawn(path, shots, validation_rows, **given):
    options = dict(balanced=False, validation=None, style="rated", noun="auto", seed=3) | given
    return from_prompts(None, path, shots=shots, validation_rows=validation_rows, **options)


def users(rows):
    return {int(user) for row in rows for user in re.findall(r"of user (\d+)", row.prompt)}


def test_validation_rows_share_no_history_with_shots(windows):
    path, sizes = windows
    for seed in range(5):
        shots = drawn(path, 4, 0, seed=seed)
        assert shots.validation == []
        left = sum(size for user, size in enumerate(sizes) if user not in users(shots.rows))
        found = drawn(path, 4, left, seed=seed)  # all that is left
        assert [row.prompt for row in found.rows] == [row.prompt for row in shots.rows]
        assert len(found.validation) == left
        assert users(found.rows).isdisjoint(users(found.validation))
        with pytest.raises(DataError, match=rf"holds {left} rows.*--validation FILE"):
            drawn(path, 4, left + 1, seed=seed)


def test_rows_of_another_file_are_taken_as_they_are(windows, tmp_path):
    path, sizes = windows
    other = tmp_path / "valid.json"
    other.write_text(path.read_text())
    assert len(drawn(path, sum(sizes), 5, validation=other).validation) == 5
    with pytest.raises(DataError, match="holds 0 rows.*fewer than the 1 validation rows"):
        drawn(path, sum(sizes), 1)
