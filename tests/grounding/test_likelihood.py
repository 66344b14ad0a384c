import numpy as np
import pytest

from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.grounding.decoding import TrieGrounder
from frugalrec.grounding.fusion import fuse
from frugalrec.grounding.likelihood import TitleLikelihood
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.fake_llm import FakeLLM
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking

PROMPT = NextTitlePrompt(noun="film", window=3)
DATA = cycle_dataset(n_users=8, n_items=20, length=5)
TITLES = list(DATA.titles)
TITLES[7] = TITLES[3]
USERS = np.array([4, 0, 7], dtype=np.int32)


def candidates(k=6):
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(20)[:k] for _ in USERS]).astype(np.int32)
    items[0, :2] = [3, 7]
    items[2, 4:] = -1
    scores = np.where(items < 0, -np.inf, -np.arange(k, dtype=np.float32)).astype(np.float32)
    return Ranking(users=USERS, items=items, scores=scores)


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_llama, tiny_t5])
def test_scores_are_those_of_the_trie(make, tmp_path):
    lm = LocalLM.load(make(tmp_path))
    lists = candidates()
    scores, usage = TitleLikelihood(lm, PROMPT).score(DATA, lists, TITLES)
    trie, _ = TrieGrounder(lm, PROMPT, titles=TITLES, beams=30).ground(DATA, USERS, k=20, seen="include")
    for row in range(USERS.size):
        known = dict(zip(trie.items[row].tolist(), trie.scores[row].tolist(), strict=True))
        expected = [known.get(int(item), np.nan) for item in lists.items[row]]
        np.testing.assert_allclose(scores[row], expected, atol=1e-4)
    assert np.isnan(scores[2, 4:]).all()
    assert usage.tokens_cached > 0 or lm.is_encoder_decoder  # the prompt is shared
    order = np.argsort(-scores[0], kind="stable")
    np.testing.assert_array_equal(fuse(lists, scores, 1.0).items[0], lists.items[0][order])


def test_scores_are_those_of_the_trie_where_histories_are_cut(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path, max_position_embeddings=100))
    prompt, long = NextTitlePrompt(noun="film", window=40), cycle_dataset(n_users=3, n_items=20, length=30)
    trie = TrieGrounder(lm, prompt, beams=30)
    lists, _ = trie.ground(long, np.arange(3), k=20, seen="include")
    ask = TitleLikelihood(lm, prompt)
    scores, _ = ask.score(long, lists)
    np.testing.assert_allclose(scores, lists.scores, atol=1e-4)
    assert ask._longest == (long.titles, trie.trie(long).longest)
    cut = long.where(np.arange(long.n) % 30 >= 1)  # the oldest title is lost anyway
    np.testing.assert_array_equal(ask.score(cut, lists)[0], scores)


def test_namesakes_share_an_answer_and_nothing_is_asked_twice():
    lm = FakeLLM()
    scores, usage = TitleLikelihood(lm, PROMPT).score(DATA, candidates(), TITLES)
    assert scores[0, 0] == scores[0, 1]
    assert usage.llm_calls == len(lm.calls) == len(set(lm.calls)) == 5 + 6 + 4


def test_neither_batches_nor_the_order_of_users_matter():
    lists = candidates()
    whole, _ = TitleLikelihood(FakeLLM(), PROMPT).score(DATA, lists, TITLES)
    told = []
    alone, _ = TitleLikelihood(FakeLLM(), PROMPT, users_per_batch=1).score(
        DATA, lists, TITLES, progress=lambda *at: told.append(at)
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    turned, _ = TitleLikelihood(FakeLLM(), PROMPT).score(DATA, lists.take(np.array([2, 0, 1])), TITLES)
    np.testing.assert_array_equal(alone, whole)
    np.testing.assert_array_equal(turned, whole[[2, 0, 1]])


def test_surprise_takes_off_what_is_likely_for_everybody():
    lists, lm = candidates(), FakeLLM()
    plain, _ = TitleLikelihood(lm, PROMPT).score(DATA, lists, TITLES)
    answers = [[PROMPT.answer(TITLES[i]) for i in row if i >= 0] for row in lists.items]
    usual, _ = lm.loglikelihood([PROMPT.question([])] * 3, answers)
    found, _ = TitleLikelihood(lm, PROMPT, surprise=0.5).score(DATA, lists, TITLES)
    for row in range(3):
        n = len(answers[row])
        np.testing.assert_allclose(found[row, :n], plain[row, :n] - 0.5 * usual[row], rtol=1e-5)


def test_answers_are_kept_on_disk_apart_from_yes_and_no(tmp_path):
    cache, lists = tmp_path / "answers.sqlite", candidates()
    first, usage = TitleLikelihood(FakeLLM(), PROMPT, surprise=1.0).score(DATA, lists, TITLES, cache=cache)
    lm = FakeLLM()
    again, free = TitleLikelihood(lm, PROMPT, surprise=1.0).score(DATA, lists, TITLES, cache=cache)
    np.testing.assert_array_equal(again, first)
    assert usage.llm_calls > 0 and free.llm_calls == 0 and not lm.calls
    other = FakeLLM(seed=1)
    TitleLikelihood(other, PROMPT).score(DATA, lists, TITLES, cache=cache)
    assert other.calls


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="users_per_batch must be at least 1, not 0"):
        TitleLikelihood(FakeLLM(), PROMPT, users_per_batch=0).score(DATA, candidates())
    with pytest.raises(ConfigError, match="surprise must be a number of at least 0, not -1"):
        TitleLikelihood(FakeLLM(), PROMPT, surprise=-1).score(DATA, candidates())
    with pytest.raises(DataError, match="expected 20 titles"):
        TitleLikelihood(FakeLLM(), PROMPT).score(DATA, candidates(), ["a"])
    with pytest.raises(ModelError, match="not finite"):
        TitleLikelihood(FakeLLM(score=lambda *_: -np.inf), PROMPT).score(DATA, candidates())
