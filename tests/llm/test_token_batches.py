import hypothesis.strategies as st
from hypothesis import given

from frugalrec.llm.batching import token_batches


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.none() | st.integers(1, 4000))
def test_every_position_is_batched_once_and_within_budget(lengths, budget, quadratic):
    batches = token_batches(lengths, budget, quadratic=quadratic)

    assert sorted(p for batch in batches for p in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[p] for p in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget
        assert quadratic is None or len(batch) == 1 or len(batch) * longest**2 <= quadratic


def test_batches_are_longest_first_with_hand_computed_sizes():
    # 9 + 8 -> 2 * 9 = 18 fits; a third row would make 27. Then 3 + 2 -> 6.
    assert token_batches([3, 9, 2, 8], max_tokens=18) == [[1, 3], [0, 2]]
    # 2 * 9**2 = 162 is over 100, so the long rows stand alone; 2 * 3**2 = 18 fits.
    assert token_batches([3, 9, 2, 8], max_tokens=18, quadratic=100) == [[1], [3], [0, 2]]


def test_a_row_over_budget_gets_a_batch_of_its_own():
    assert token_batches([5, 500], max_tokens=100) == [[1], [0]]


def test_nothing_to_batch():
    assert token_batches([], max_tokens=10) == []
