import numpy as np
import polars as pl
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.grounding.candidates import CandidateReranker
from frugalrec.grounding.fusion import fuse
from frugalrec.grounding.likelihood import TitleLikelihood
from frugalrec.grounding.styles import STYLES, make_reranker
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.testing.fake_chat import FakeChat, ranked
from frugalrec.testing.fake_llm import FakeLLM
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking

DATA = cycle_dataset(n_users=8, n_items=30, length=6)


def lists(k=12):
    items = np.stack([np.random.default_rng(u).permutation(30)[:k] for u in range(5)]).astype(np.int32)
    items[4, 1:] = -1
    items[3] = -1
    scores = np.where(items < 0, -np.inf, -np.arange(k)).astype(np.float32)
    return Ranking(users=np.arange(5, dtype=np.int32), items=items, scores=scores)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_gives_scores_reasons_and_costs(style):
    lm = FakeLLM(reply=lambda prompt: ranked(range(8, 0, -1)))
    result = make_reranker(style, lm=lm, noun="film", depth=8).rerank(DATA, lists())
    assert result.scores.shape == (5, 8) and result.scores.dtype == np.float32
    assert np.isfinite(result.scores[:3]).all() and np.isnan(result.scores[3]).all()
    assert result.reasons[:3] == ("answered",) * 3 and result.reasons[3] == "nothing-to-rank"
    assert result.report["users"] == 5 and sum(result.report["reasons"].values()) == 5
    assert result.usage.llm_calls > 0
    fused = fuse(lists(), result.scores, 1.0)
    np.testing.assert_array_equal(np.sort(fused.items), np.sort(lists().items))
    np.testing.assert_array_equal(fused.items[:, 8:], lists().items[:, 8:])


def test_pointwise_and_likelihood_are_what_they_were():
    head = Ranking(users=lists().users, items=lists().items[:, :8], scores=lists().scores[:, :8])
    odds, _ = CandidateReranker(FakeLLM(), RerankPrompt(noun="film")).score(DATA, head)
    found = make_reranker("pointwise", lm=FakeLLM(), noun="film", depth=8).rerank(DATA, lists())
    np.testing.assert_array_equal(found.scores, odds)
    sums, _ = TitleLikelihood(FakeLLM(), NextTitlePrompt(noun="film"), surprise=0.5).score(DATA, head)
    found = make_reranker("likelihood", lm=FakeLLM(), noun="film", depth=8, surprise=0.5).rerank(
        DATA, lists()
    )
    np.testing.assert_array_equal(found.scores, sums)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_keeps_answers_on_disk(style, tmp_path):
    cache = tmp_path / "answers.sqlite"
    reply = {"reply": lambda prompt: ranked(range(8, 0, -1))}
    first = make_reranker(style, lm=FakeLLM(**reply), depth=8, cache=cache).rerank(DATA, lists())
    silent = FakeLLM(**reply)
    again = make_reranker(style, lm=silent, depth=8, cache=cache).rerank(DATA, lists())
    np.testing.assert_array_equal(first.scores, again.scores)
    assert not silent.calls and again.usage.llm_calls == 0


@pytest.mark.parametrize("given", ["default", "shown to people"])
@pytest.mark.parametrize("style", STYLES)
def test_no_style_asks_about_ids(style, given):
    frame, texts = DATA.to_frames()
    titles = pl.when(pl.col("item").str.contains("[1357]$")).then(None).otherwise("title").alias("title")
    data = Dataset.from_frames(frame, texts.with_columns(titles), name="some")
    nameless = [item for item, title in enumerate(data.titles) if title.startswith("item ")]
    lm = FakeLLM(reply=lambda prompt: ranked(range(8, 0, -1)))
    shown = None if given == "default" else data.titles
    result = make_reranker(style, lm=lm, depth=8).rerank(data, lists(), shown)
    asked = np.isin(lists().items[:3, :8], nameless, invert=True)
    assert len(nameless) == 12 and not asked.all()
    np.testing.assert_array_equal(np.isfinite(result.scores[:3]), asked)
    assert lm.calls and not any('"item' in call or "item i" in call for call in map(str, lm.calls))


def test_an_endpoint_ranks_lists_and_nothing_else():
    chat = FakeChat()
    assert make_reranker("listwise", chat=chat, replicas=2).rerank(DATA, lists()).reasons[0] == "answered"
    assert chat.asked
    with pytest.raises(ConfigError, match="the style pointwise needs a language model"):
        make_reranker("pointwise", chat=chat)
    with pytest.raises(ConfigError, match="a chat model or a language model"):
        make_reranker("listwise")
    with pytest.raises(ConfigError, match="unknown re-ranking style 'pairwise'; choose one of pointwise"):
        make_reranker("pairwise", lm=FakeLLM())
