"""What all ways of grounding ask, and what they do about items without a title."""

import numpy as np
import polars as pl
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import examples
from frugalrec.errors import DataError
from frugalrec.grounding.decoding import TrieGrounder
from frugalrec.grounding.likelihood import TitleLikelihood
from frugalrec.grounding.nearest import NearestGrounder
from frugalrec.grounding.questions import checked_titles, questions
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.fake_llm import FakeLLM
from frugalrec.testing.tiny_models import tiny_llama
from frugalrec.testing.toys import cycle_dataset
from frugalrec.tuning.rows import title_rows
from frugalrec.types import Ranking

PROMPT = NextTitlePrompt(noun="film", window=4)
DATA = cycle_dataset(n_users=9, n_items=20, length=6)
# Items 2 and 3 have titles without text; item 5 is really called so.
BLANK = [2, 3, 19]
TITLES = [
    "" if item == 19 else " \u200b"[item - 2] if item in BLANK else f"Film {item}" for item in range(20)
]
TITLES[5] = "Untitled"
USERS = np.arange(9)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return LocalLM.load(tiny_llama(tmp_path_factory.mktemp("lm")))


def test_titles_without_text_are_none():
    found = checked_titles(TITLES, DATA)
    assert found == ["" if item in BLANK else title for item, title in enumerate(TITLES)]
    frame = pl.DataFrame({"user": ["a", "a", "a"], "item": ["x", "y", "z"]})
    names = pl.DataFrame({"item": ["x", "y", "z"], "title": ["Heat", "\u200b\t", None]})
    data = Dataset.from_frames(frame, names, name="blank")
    for given in (None, data.titles, tuple(data.titles)):
        assert sorted(checked_titles(given, data)) == ["", "", "Heat"]  # "item z" is for people
    mine = ["my own" if title == "item z" else title for title in data.titles]
    assert sorted(checked_titles(mine, data)) == ["", "Heat", "my own"]


def test_questions_show_the_histories_of_training():
    last = np.flatnonzero(np.append(np.diff(DATA.rows), 1))
    history = DATA.where(~np.isin(np.arange(DATA.n), last))
    cut = examples(DATA, window=PROMPT.window)
    cut = cut.take(np.flatnonzero(np.append(np.diff(cut.users), 1)))  # each user's last item is the target
    titles = checked_titles(TITLES, DATA)
    asked = cut.users[[titles[item] != "" for item in cut.targets]]
    texts = questions(FakeLLM(), PROMPT, history, asked, titles, room=1)
    rows = title_rows(cut, titles)
    assert texts == [PROMPT.question(shown) for shown, _ in rows]
    shortened = [len(shown) < PROMPT.window for shown, _ in rows]
    assert any(shortened) and not all(shortened) and "untitled" not in "".join(texts)


def test_a_history_without_any_title_is_an_empty_one():
    history = DATA.where(np.isin(DATA.items, BLANK))
    texts = questions(FakeLLM(), PROMPT, history, USERS, checked_titles(TITLES, DATA), room=1)
    assert set(texts) == {PROMPT.question([])}


@pytest.mark.parametrize("way", ["trie", "exact", "faiss"])
def test_items_without_a_title_are_never_listed(lm, way):
    if way == "faiss":
        pytest.importorskip("faiss", reason="needs frugalrec[ann]")
    popular = np.isin(np.arange(20), BLANK) * 1.0
    if way == "trie":
        ground = TrieGrounder(lm, PROMPT, beams=30, titles=TITLES, prior=20 * popular)
        trie = ground.trie(DATA)
        assert (trie.n_titles, trie.n_items) == (17, 17)
    else:
        lm = FakeLLM(reply=lambda prompt: "\u200b")  # the nearest title, if there were one
        options = {"titles": TITLES, "weights": popular, "gamma": 9.0, "index": way}
        ground = NearestGrounder(lm, PROMPT, Lengths(), **options)
        far = ground.distances(DATA, ["Film 7"])
        assert np.flatnonzero(np.isposinf(far[0])).tolist() == BLANK and far[0, 7] == 0
    ranking, _ = ground.ground(DATA, USERS, k=20, seen="include")
    titled = [item for item in range(20) if item not in BLANK]
    assert (np.sort(ranking.items[:, :17], axis=1) == titled).all()
    assert (ranking.items[:, 17:] == -1).all() and np.isneginf(ranking.scores[:, 17:]).all()


def test_candidates_without_a_title_have_no_score():
    items = np.tile(np.array([3, 5, 19, 0, -1], dtype=np.int32), (2, 1))
    lists = Ranking(users=USERS[:2], items=items, scores=-np.arange(10, dtype=np.float32).reshape(2, 5))
    lm = FakeLLM()
    scores, usage = TitleLikelihood(lm, PROMPT).score(DATA, lists, TITLES)
    np.testing.assert_array_equal(np.isnan(scores), [[True, False, True, False, True]] * 2)
    assert usage.llm_calls == 4 and not any("untitled" in call for call in lm.calls)


def test_a_catalogue_without_titles_is_refused(lm):
    for ground in (
        TrieGrounder(lm, PROMPT, titles=[" "] * 20),
        NearestGrounder(FakeLLM(), PROMPT, Lengths(), titles=[" "] * 20),
    ):
        with pytest.raises(DataError, match="none of 20 titles has any text"):
            ground.ground(DATA, USERS)


class Lengths:
    """Vectors that depend on the title."""

    fingerprint = "lengths"

    def embed(self, texts):
        return np.array([[len(text), sum(map(ord, text))] for text in texts], dtype=np.float32)
