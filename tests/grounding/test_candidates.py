import hashlib
import sqlite3
from dataclasses import replace

import numpy as np
import pytest

from frugalrec.errors import DataError, ModelError, StorageError
from frugalrec.grounding.answers import AnswerCache, answer_key
from frugalrec.grounding.candidates import CandidateReranker
from frugalrec.ledger import Usage
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking


def log_odds(prompt):
    """A number that depends on every character of the prompt."""
    return hashlib.sha256(prompt.encode()).digest()[0] / 64 - 2


class HashLLM:
    """Answers by the hash of the prompt, counts what it is asked, and can be made to fail."""

    model = "hash"

    def __init__(self, fingerprint="one", fail_after=None):
        self.fingerprint, self.fail_after = fingerprint, fail_after
        self.asked = []

    def choose(self, groups, answers):
        if self.fail_after is not None and len(self.asked) >= self.fail_after:
            raise RuntimeError("killed")
        prompts = [[g.prefix + s for s in g.suffixes] for g in groups]
        self.asked += [p for part in prompts for p in part]
        rows = [np.array([[log_odds(p), 0.0] for p in part], dtype=np.float32) for part in prompts]
        return rows, Usage(llm_calls=sum(map(len, prompts)))


DATA = cycle_dataset(n_users=12, n_items=20, length=6)
PROMPT = RerankPrompt(noun="film", window=4)


def candidates(users, k=5):
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(DATA.n_items)[:k] for _ in users]).astype(np.int32)
    items[-1, 3:] = -1
    scores = np.where(items == -1, -np.inf, -np.arange(k, dtype=np.float32)).astype(np.float32)
    return Ranking(users=np.array(users, dtype=np.int32), items=items, scores=scores)


RANKING = candidates([3, 0, 7, 11, 5])


def test_scores_are_those_of_whole_prompts_and_nan_at_pads():
    odds, usage = CandidateReranker(HashLLM(), PROMPT).score(DATA, RANKING)
    assert usage.llm_calls == 23
    for row, user in enumerate(RANKING.users):
        history = [DATA.titles[i] for i in DATA.history(int(user))[-4:]]
        for column, item in enumerate(RANKING.items[row]):
            if item == -1:
                assert np.isnan(odds[row, column])
            else:
                whole = PROMPT.prefix(history) + PROMPT.suffix(DATA.titles[item])
                assert odds[row, column] == pytest.approx(log_odds(whole))


def test_result_does_not_depend_on_batches_or_order():
    odds, _ = CandidateReranker(HashLLM(), PROMPT).score(DATA, RANKING)
    for size in (1, 2, 100):
        again, _ = CandidateReranker(HashLLM(), PROMPT, users_per_batch=size).score(DATA, RANKING)
        np.testing.assert_array_equal(odds, again)
    order = np.array([4, 2, 0, 1, 3])
    turned, _ = CandidateReranker(HashLLM(), PROMPT).score(DATA, RANKING.take(order))
    np.testing.assert_array_equal(odds[order], turned)


def test_ratings_enter_the_prompt():
    llm = HashLLM()
    CandidateReranker(llm, replace(PROMPT, min_like=4)).score(DATA, RANKING)
    assert all("watched" not in p and ("liked" in p or "disliked" in p) for p in llm.asked)


def test_killed_run_repeats_no_call(tmp_path):
    path = tmp_path / "answers.sqlite"
    killed = HashLLM(fail_after=10)
    with pytest.raises(RuntimeError, match="killed"):
        CandidateReranker(killed, PROMPT, users_per_batch=1).score(DATA, RANKING, cache=path)
    assert len(killed.asked) == 10
    resumed = HashLLM()
    odds, usage = CandidateReranker(resumed, PROMPT, users_per_batch=1).score(DATA, RANKING, cache=path)
    assert len(resumed.asked) == usage.llm_calls == 13
    with AnswerCache(path) as cache:
        assert cache.spent().llm_calls == 23  # what the killed call paid for is not forgotten
    assert not set(resumed.asked) & set(killed.asked)
    np.testing.assert_array_equal(odds, CandidateReranker(HashLLM(), PROMPT).score(DATA, RANKING)[0])
    silent = HashLLM(fail_after=0)
    again, usage = CandidateReranker(silent, PROMPT).score(DATA, RANKING, cache=path)
    np.testing.assert_array_equal(odds, again)
    assert usage == Usage()


def test_another_model_or_prompt_is_asked_anew(tmp_path):
    path = tmp_path / "answers.sqlite"
    CandidateReranker(HashLLM(), PROMPT).score(DATA, RANKING, cache=path)
    for llm, prompt in [(HashLLM("two"), PROMPT), (HashLLM(), replace(PROMPT, window=3))]:
        _, usage = CandidateReranker(llm, prompt).score(DATA, RANKING, cache=path)
        assert usage.llm_calls == 23
    assert len({answer_key("a", "bc", ("d", "e")), answer_key("ab", "c", ("d", "e"))}) == 2


def test_same_title_is_asked_once():
    titles = ["One title"] * DATA.n_items
    llm = HashLLM()
    odds, _ = CandidateReranker(llm, PROMPT).score(DATA, RANKING, titles)
    assert len(llm.asked) == len(set(llm.asked)) <= RANKING.users.size
    assert np.unique(odds[0]).size == 1


def test_items_without_a_title_are_neither_asked_about_nor_shown():
    blank = [0, 7, 11]
    titles = ["" if item in blank else title for item, title in enumerate(DATA.titles)]
    llm = HashLLM()
    odds, _ = CandidateReranker(llm, PROMPT).score(DATA, RANKING, titles)
    np.testing.assert_array_equal(np.isnan(odds), np.isin(RANKING.items, [-1, *blank]))
    assert np.isnan(odds).sum() > 2
    for row, user in enumerate(RANKING.users):
        shown = [titles[item] for item in DATA.history(int(user)) if titles[item]][-4:]
        for column in np.flatnonzero(np.isfinite(odds[row])):
            whole = PROMPT.prefix(shown) + PROMPT.suffix(titles[RANKING.items[row, column]])
            assert odds[row, column] == pytest.approx(log_odds(whole))
    with pytest.raises(DataError, match="none of 20 titles has any text"):
        CandidateReranker(llm, PROMPT).score(DATA, RANKING, [""] * 20)


def test_ratings_stay_with_their_items_where_some_have_no_title():
    titles = ["" if item in (0, 7, 11) else title for item, title in enumerate(DATA.titles)]
    llm, prompt = HashLLM(), replace(PROMPT, min_like=4)
    CandidateReranker(llm, prompt).score(DATA, RANKING, titles)
    expected = set()
    for user in RANKING.users.tolist():
        span = slice(DATA.indptr[user], DATA.indptr[user + 1])
        pairs = zip(DATA.items[span].tolist(), DATA.values[span].tolist(), strict=True)
        kept = [(titles[item], value) for item, value in pairs if titles[item]][-4:]
        liked = [title for title, value in kept if value >= 4]
        expected.add(prompt.prefix([], liked, [title for title, value in kept if value < 4]))
    assert {asked[: asked.index(" like the film") + len(" like the film")] for asked in llm.asked} == expected


def test_progress_counts_users():
    seen = []
    reranker = CandidateReranker(HashLLM(), PROMPT, users_per_batch=2)
    reranker.score(DATA, RANKING, progress=lambda *pair: seen.append(pair))
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_damaged_cache_and_bad_answers_are_named(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError, match="answers.sqlite .* or delete it"):
        CandidateReranker(HashLLM(), PROMPT).score(DATA, RANKING, cache=path)
    with pytest.raises(StorageError, match="not open"):
        AnswerCache(tmp_path / "x").get([b"key"])

    class Broken(HashLLM):
        def choose(self, groups, answers):
            return [np.full((len(g.suffixes), 2), np.nan) for g in groups], Usage()

    with pytest.raises(ModelError, match="not finite"):
        CandidateReranker(Broken(), PROMPT).score(DATA, RANKING)
    with pytest.raises(DataError, match="20 titles"):
        CandidateReranker(HashLLM(), PROMPT).score(DATA, RANKING, ["a"])


def test_cache_file_holds_no_text(tmp_path):
    path = tmp_path / "answers.sqlite"
    CandidateReranker(HashLLM(), PROMPT).score(DATA, RANKING, cache=path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (23,)
    connection.close()
    assert b"Film" not in path.read_bytes()
