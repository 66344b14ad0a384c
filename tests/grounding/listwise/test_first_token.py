import re

import numpy as np
import pytest

from frugalrec.errors import ConfigError, ModelError
from frugalrec.grounding.fusion import fuse
from frugalrec.grounding.listwise import FirstTokenReranker, ListwisePrompt
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.http import Endpoint, HttpChat
from frugalrec.llm.http.language_model import HttpLM
from frugalrec.llm.local import LocalLM
from frugalrec.rng import derive_seed
from frugalrec.testing.fake_llm import FakeLLM
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking

PROMPT = ListwisePrompt(noun="film", window=4)
DATA = cycle_dataset(n_users=10, n_items=30, length=6)
TITLES = list(DATA.titles)


def lists(n=4, k=12):
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(30)[:k] for _ in range(n)]).astype(np.int32)
    items[-1, 9:] = -1
    scores = np.where(items < 0, -np.inf, -np.arange(k)).astype(np.float32)
    return Ranking(users=np.arange(n, dtype=np.int32), items=items, scores=scores)


def title_of(prompt, answer):
    return re.search(rf'^{answer.strip()}: "(.*)"$', prompt, re.MULTILINE).group(1)


def reader():
    """A model that judges the title behind a letter, wherever it stands."""
    return FakeLLM(score=lambda prompt, answer: derive_seed(0, title_of(prompt, answer)) / 2**63)


def test_a_perfect_reader_ranks_by_what_it_reads():
    cheap, lm = lists(), reader()
    result = FirstTokenReranker(lm, PROMPT, replicas=3, presentation="balanced").rerank(DATA, cheap)
    for row in range(4):
        known = [item for item in cheap.items[row].tolist() if item >= 0]
        expected = sorted(known, key=lambda item: -derive_seed(0, TITLES[item]))
        assert result.ranking.items[row, : len(known)].tolist() == expected
    np.testing.assert_allclose(result.agreement, 1.0)
    assert result.usage.tokens_out == 0 and result.usage.llm_calls == result.requests == 12
    assert result.reasons == ("answered",) * 4
    np.testing.assert_array_equal(fuse(cheap, result.scores, 1.0).items, result.ranking.items)


def test_scores_are_the_mean_log_probability_over_orders():
    lm = FakeLLM()
    result = FirstTokenReranker(lm, PROMPT, replicas=2).rerank(DATA, lists())
    prompts = [p for p in dict.fromkeys(lm.calls) if all(f'"{TITLES[i]}"' in p for i in lists().items[1])]
    prompts = [p for p in prompts if p.startswith(lm.calls[0][:10])]
    names = {TITLES[item]: place for place, item in enumerate(lists().items[1].tolist())}
    sums = np.zeros(12)
    mine = [p for p in prompts if set(re.findall(r'^[A-L]: "(.*)"$', p, re.MULTILINE)) == set(names)]
    assert len(mine) == 2
    for prompt in mine:
        (row,), _ = FakeLLM().choose(
            [PromptGroup(prefix=prompt, suffixes=("",))], [f" {c}" for c in "ABCDEFGHIJKL"]
        )
        for letter, value in zip("ABCDEFGHIJKL", row[0], strict=True):
            sums[names[title_of(prompt, letter)]] += value
    np.testing.assert_allclose(result.scores[1], sums / 2, rtol=1e-5)


def test_a_model_that_prefers_the_first_letters_is_seen_to_echo():
    lm = FakeLLM(score=lambda prompt, answer: -float(ord(answer.strip())))
    result = FirstTokenReranker(lm, PROMPT, replicas=3).rerank(DATA, lists())
    np.testing.assert_allclose(result.echo, 1.0)
    assert np.nanmean(result.agreement) < 0.5
    unstable = FirstTokenReranker(lm, PROMPT, replicas=3, min_agreement=0.9).rerank(DATA, lists())
    assert set(unstable.reasons) == {"unstable"} and np.isnan(unstable.scores).all()
    np.testing.assert_array_equal(unstable.ranking.items, lists().items)


def test_neither_batches_nor_who_else_is_asked_matters(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path, max_position_embeddings=2048))
    told = []
    whole = FirstTokenReranker(lm, PROMPT).rerank(DATA, lists(), progress=lambda *at: told.append(at))
    alone = FirstTokenReranker(lm, PROMPT, prompts_per_batch=1).rerank(DATA, lists().take(np.array([2, 0])))
    np.testing.assert_allclose(alone.scores, whole.scores[[2, 0]], atol=1e-4)
    assert told == [(4, 4)] and np.isfinite(whole.scores[:3]).all()
    assert whole.usage.tokens_in > 0 and whole.usage.llm_calls == 4


def test_the_history_is_read_once_for_all_orders(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path, max_position_embeddings=2048))
    shared = FirstTokenReranker(lm, PROMPT, replicas=3).rerank(DATA, lists())
    lm.share_prefix, lm._scorer = False, None
    whole = FirstTokenReranker(lm, PROMPT, replicas=3).rerank(DATA, lists())
    np.testing.assert_allclose(shared.scores, whole.scores, atol=1e-4)
    assert shared.usage.tokens_in < 0.7 * whole.usage.tokens_in
    assert shared.usage.tokens_in + shared.usage.tokens_cached == whole.usage.tokens_in


def test_encoder_decoders_are_asked_in_plain_text(tmp_path):
    lm = LocalLM.load(tiny_t5(tmp_path))
    lm.tokenizer.chat_template = None
    result = FirstTokenReranker(lm, PROMPT).rerank(DATA, lists())
    assert np.isfinite(result.scores[:3]).all()


def test_answers_are_kept_on_disk(tmp_path):
    cache = tmp_path / "answers.sqlite"
    first = FirstTokenReranker(FakeLLM(), PROMPT, cache=cache).rerank(DATA, lists())
    silent = FakeLLM()
    again = FirstTokenReranker(silent, PROMPT, cache=cache).rerank(DATA, lists())
    np.testing.assert_array_equal(first.scores, again.scores)
    assert not silent.calls and again.usage.llm_calls == 0 and first.usage.llm_calls == 4
    assert first.reasons == ("answered",) * 4 and again.reasons == ("cached",) * 4
    more = FirstTokenReranker(FakeLLM(), PROMPT, cache=cache, replicas=2).rerank(DATA, lists())
    assert more.reasons == ("answered",) * 4 and more.usage.llm_calls == 4


class Unlucky(FakeLLM):
    """Tells no letters of prompts that show a title."""

    def __init__(self, title):
        super().__init__()
        self.title = title

    def choose(self, groups, answers):
        if any(self.title in group.prefix + suffix for group in groups for suffix in group.suffixes):
            raise ModelError("'K' is not among the likeliest first tokens")
        return super().choose(groups, answers)


@pytest.mark.parametrize("size", [1, 2, 32])
def test_one_users_trouble_is_not_the_others(size):
    cheap = lists()
    elsewhere = {item for user in (0, 2, 3) for item in DATA.history(user)[-4:].tolist()}
    elsewhere |= set(cheap.items[[0, 2, 3]].ravel().tolist())
    only = next(i for i in [*cheap.items[1].tolist(), *DATA.history(1)[-4:].tolist()] if i not in elsewhere)
    lm = Unlucky(f'"{TITLES[only]}"')
    result = FirstTokenReranker(lm, PROMPT, prompts_per_batch=size).rerank(DATA, cheap)
    whole = FirstTokenReranker(FakeLLM(), PROMPT).rerank(DATA, cheap)
    assert result.reasons == ("answered", "unscored", "answered", "answered")
    assert np.isnan(result.scores[1]).all()
    np.testing.assert_array_equal(result.scores[[0, 2, 3]], whole.scores[[0, 2, 3]])
    np.testing.assert_array_equal(result.ranking.items[1], cheap.items[1])
    with pytest.raises(ModelError, match="not among the likeliest"):  # nobody has an answer
        FirstTokenReranker(Unlucky(""), PROMPT).rerank(DATA, cheap)


def test_an_endpoint_that_cannot_tell_all_letters_is_refused():
    lm = HttpLM(HttpChat(Endpoint(base_url="http://127.0.0.1:9/v1", model="m", profile="vllm")))
    with pytest.raises(ConfigError, match="20 likeliest tokens alone, and the letters of 20 candidates"):
        FirstTokenReranker(lm, PROMPT)
    assert FirstTokenReranker(lm, PROMPT, depth=10).depth == 10


def test_places_are_flat_for_a_reader_of_titles_and_rise_for_one_of_letters():
    def told(lm, **options):
        return FirstTokenReranker(lm, PROMPT, depth=9, **options).rerank(DATA, lists()).report["places"]

    letters = FakeLLM(score=lambda prompt, answer: -float(ord(answer.strip())))
    np.testing.assert_allclose(told(letters), np.arange(9) / 8)
    assert np.ptp(told(reader(), replicas=50)) < 0.25
    assert told(FakeLLM(score=lambda prompt, answer: 0.0)) == [0.5] * 9


def test_deep_lists_are_asked_in_windows():
    cheap = lists(k=12)
    result = FirstTokenReranker(reader(), PROMPT, depth=12, window=6, stride=3).rerank(DATA, cheap)
    best = max(cheap.items[0].tolist(), key=lambda item: derive_seed(0, TITLES[item]))
    assert result.ranking.items[0, 0] == best and result.requests == 3 * 3 + 2


def test_bad_options_and_answers_are_named():
    with pytest.raises(ConfigError, match="window of 27 candidates needs more than the 26 letters"):
        FirstTokenReranker(FakeLLM(), PROMPT, window=27)
    with pytest.raises(ConfigError, match="prompts_per_batch must be at least 1, not 0"):
        FirstTokenReranker(FakeLLM(), PROMPT, prompts_per_batch=0).rerank(DATA, lists())
    with pytest.raises(ModelError, match="not finite"):
        FirstTokenReranker(FakeLLM(score=lambda *_: -np.inf), PROMPT).rerank(DATA, lists())
