import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from frugalrec.llm.prefix import common_prefix, layout, pack

token_lists = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=1, max_size=8)


@given(token_lists)
def test_common_prefix_equals_a_naive_loop(prompts):
    shared = 0
    while all(len(p) > shared for p in prompts) and len({p[shared] for p in prompts}) == 1:
        shared += 1

    assert common_prefix(prompts) == shared


@given(token_lists, st.integers(1, 40))
def test_packing_keeps_every_prompt_whole_and_in_order(prompts, max_row):
    rows = pack(prompts, max_row=max_row)

    assert [m for row in rows for m in row.members] == list(range(len(prompts)))
    for row in rows:
        for suffix, member in zip(row.suffixes, row.members, strict=True):
            assert list(row.prefix + suffix) == prompts[member]


@given(token_lists, st.integers(1, 40))
def test_columns_find_the_tokens_of_each_prompt(prompts, max_row):
    rows = pack(prompts, max_row=max_row)
    ids, positions, _ = layout(rows, pad=9)

    for r, row in enumerate(rows):
        for s, member in enumerate(row.members):
            places = range(len(prompts[member]))
            columns = row.columns(s, places)
            assert ids[r, columns].tolist() == prompts[member]
            assert positions[r, columns].tolist() == list(places)


@given(token_lists, st.integers(1, 40))
def test_each_token_sees_exactly_its_own_prompt_up_to_itself(prompts, max_row):
    rows = pack(prompts, max_row=max_row)
    _, _, sees = layout(rows, pad=9)

    for r, row in enumerate(rows):
        for s, member in enumerate(row.members):
            columns = row.columns(s, range(len(prompts[member])))
            for i, column in enumerate(columns):
                assert np.flatnonzero(sees[r, column]).tolist() == sorted(columns[: i + 1])


def test_a_long_group_is_split_evenly():
    # Prefix 4 and 10 suffixes of 3 = 30 tokens; rows of 16 leave room for 12, so at least 3 rows.
    prompts = [[7, 7, 7, 7, n, n, n] for n in range(10)]

    rows = pack(prompts, max_row=16)

    assert [len(row.suffixes) for row in rows] == [3, 3, 3, 1]
    assert max(row.length for row in rows) <= 16
    assert sum(row.length for row in rows) == 30 + 4 * len(rows)


def test_a_prefix_longer_than_a_row_still_carries_as_many_suffix_tokens():
    # Prefix 20, rows of 16: at least 20 suffix tokens a row, so that work at most doubles.
    prompts = [[1] * 20 + [n + 2] * 5 for n in range(8)]

    rows = pack(prompts, max_row=16)

    assert [len(row.suffixes) for row in rows] == [4, 4]


@pytest.mark.parametrize("copies", [1, 3])
def test_equal_prompts_are_all_prefix(copies):
    (row,) = pack([[1, 2, 3]] * copies, max_row=100)

    assert row.prefix == (1, 2, 3) and row.suffixes == ((),) * copies and row.length == 3
    assert row.columns(copies - 1, [2]) == [2]
