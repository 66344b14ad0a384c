import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.data.examples import examples
from frugalrec.errors import ConfigError
from frugalrec.testing.toys import cycle_dataset


def naive(dataset, window, min_history, per_user):
    rows = []
    for user in range(dataset.n_users):
        sequence = dataset.history(user).tolist()
        for position in range(len(sequence)):
            if position < min_history or (per_user == "last" and position != len(sequence) - 1):
                continue
            rows.append((user, sequence[max(0, position - window) : position], sequence[position]))
    return rows


@pytest.mark.slow
@given(st.integers(1, 15), st.integers(0, 4), st.sampled_from(["last", "all"]), st.integers(0, 2))
def test_examples_equal_a_naive_loop(window, min_history, per_user, seed):
    dataset = cycle_dataset(n_users=7, length=5, seed=seed)
    rows = examples(dataset, window=window, min_history=min_history, per_user=per_user)
    got = [(int(rows.users[r]), rows.history(r).tolist(), int(rows.targets[r])) for r in range(len(rows))]
    assert got == naive(dataset, window, min_history, per_user)


def test_take_keeps_rows_whole_and_in_the_order_asked():
    rows = examples(cycle_dataset(), window=4)
    part = rows.take(np.array([5, 0, 5]))
    assert part.history(0).tolist() == part.history(2).tolist() == rows.history(5).tolist()
    assert part.targets.tolist() == rows.targets[[5, 0, 5]].tolist()
    assert part.labels.tolist() == rows.labels[[5, 0, 5]].tolist()


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="window must be >= 1"):
        examples(cycle_dataset(), window=0)
