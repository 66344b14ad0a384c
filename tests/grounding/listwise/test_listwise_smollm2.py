"""The embedded model as a listwise re-ranker: whatever it says, everybody has a list."""

import numpy as np
import pytest

from frugalrec.data.simulate import film_club
from frugalrec.grounding.listwise import FirstTokenReranker, ListwisePrompt, ListwiseReranker
from frugalrec.llm.framing import framed
from frugalrec.llm.local import LocalLM
from frugalrec.llm.local_chat import LocalChat
from frugalrec.types import Ranking

pytestmark = pytest.mark.slow
PROMPT = ListwisePrompt(noun="film", window=5)


@pytest.fixture(scope="module")
def lm(smollm2):
    return LocalLM.load(smollm2, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def club():
    return film_club(n_members=10)


def lists(club, n=3, k=8):
    items = np.stack([np.random.default_rng(u).permutation(club.n_items)[:k] for u in range(n)]).astype(
        np.int32
    )
    return Ranking(
        users=np.arange(n, dtype=np.int32),
        items=items,
        scores=np.tile(-np.arange(k, dtype=np.float32), (n, 1)),
    )


def test_it_takes_the_system_role_and_letters_are_tokens_of_their_own(lm, club):
    request = PROMPT.request("HISTORY", ["Alien (1979)", "Heat (1995)"])
    text = framed(lm, request.system, request.user).text
    assert text.startswith(f"<|im_start|>system\n{request.system}<|im_end|>\n<|im_start|>user\nHISTORY")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    result = FirstTokenReranker(lm, PROMPT, depth=8).rerank(club, lists(club))
    assert np.isfinite(result.scores).all() and result.usage.tokens_out == 0


def test_whatever_it_writes_everybody_has_a_list(lm, club, tmp_path):
    cheap = lists(club)
    chat = LocalChat(lm, cache=tmp_path / "answers.sqlite")
    result = ListwiseReranker(chat, PROMPT, promotion_cap=3).rerank(club, cheap)
    np.testing.assert_array_equal(np.sort(result.ranking.items), np.sort(cheap.items))
    assert set(result.reasons) <= {"answered", "unparsed"} and result.usage.tokens_out > 0
    again = ListwiseReranker(chat, PROMPT, promotion_cap=3).rerank(club, cheap)
    np.testing.assert_array_equal(again.ranking.items, result.ranking.items)
    assert set(again.reasons) <= {"cached", "unparsed"} and again.usage.tokens_out == 0
