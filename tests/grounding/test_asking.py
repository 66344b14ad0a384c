import numpy as np
import pytest

from frugalrec.errors import ConfigError, ModelError
from frugalrec.grounding.answers import answer_key
from frugalrec.grounding.asking import Asker, ask_rows
from frugalrec.ledger import Usage
from frugalrec.testing.fake_llm import FakeLLM


def key(fingerprint, pair):
    return answer_key(fingerprint, pair[0], ("length", pair[1]))


def lengths(calls=None):
    def ask(asked):
        if calls is not None:
            calls.append({question: list(answers) for question, answers in asked.items()})
        rows = [np.array([len(q) + 10.0 * len(a) for a in answers]) for q, answers in asked.items()]
        return rows, Usage(llm_calls=sum(map(len, asked.values())))

    return ask


def test_pairs_are_asked_once_and_grouped_by_question():
    calls = []
    with Asker(FakeLLM(), lengths(calls), key, None) as asker:
        found = asker.values([("a", "x"), ("bb", "x"), ("a", "yy"), ("a", "x")])
    assert found == {("a", "x"): 11.0, ("bb", "x"): 12.0, ("a", "yy"): 21.0}
    assert calls == [{"a": ["x", "yy"], "bb": ["x"]}] and asker.usage.llm_calls == 3


def test_what_is_in_the_file_is_not_asked(tmp_path):
    cache, calls = tmp_path / "answers.sqlite", []
    with Asker(FakeLLM(), lengths(), key, cache) as first:
        first.values([("a", "x")])
    with Asker(FakeLLM(), lengths(calls), key, cache) as second:
        assert second.values([("a", "x"), ("a", "y")]) == {("a", "x"): 11.0, ("a", "y"): 11.0}
    assert calls == [{"a": ["y"]}] and second.usage.llm_calls == 1
    with Asker(FakeLLM(seed=1), lengths(calls), key, cache) as other:
        other.values([("a", "x")])
    assert len(calls) == 2


@pytest.mark.parametrize("size", [1, 2, 9])
def test_rows_are_filled_where_asked_whatever_the_batches(size):
    asked, told = np.array([[True, False, True], [False, False, False], [True, True, False]]), []
    pairs = [[("a", "x"), ("a", "yy")], [], [("bb", "x"), ("a", "x")]]
    with Asker(FakeLLM(), lengths(), key, None) as asker:
        found = ask_rows(
            asker, asked, pairs.__getitem__, users_per_batch=size, progress=lambda *at: told.append(at)
        )
    nan = np.nan
    np.testing.assert_array_equal(found, [[11, nan, 21], [nan, nan, nan], [12, 11, nan]])
    assert told[-1] == (3, 3) and len(told) == -(-3 // size)


def test_bad_input_is_named():
    with Asker(FakeLLM(), lengths(), key, None) as asker:
        with pytest.raises(ConfigError, match="users_per_batch must be at least 1, not 0"):
            ask_rows(asker, np.zeros((1, 1), bool), lambda row: [], users_per_batch=0, progress=None)
    broken = Asker(FakeLLM(), lambda asked: ([np.array([np.inf])], Usage()), key, None)
    with broken, pytest.raises(ModelError, match="not finite"):
        broken.values([("a", "x")])
