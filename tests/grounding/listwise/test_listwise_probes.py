import numpy as np
import pytest

from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.listwise import (
    FirstTokenReranker,
    ListwisePrompt,
    ListwiseReranker,
    cautions,
    position_probe,
)
from frugalrec.rng import derive_seed, generator
from frugalrec.testing.fake_chat import FakeChat, by, echoed, ranked, shown_titles
from frugalrec.testing.fake_llm import FakeLLM
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking

PROMPT = ListwisePrompt(noun="film", window=10)
CUT = split(cycle_dataset(n_users=60, n_items=60, length=10), "leave-last-out")
HISTORY, TARGETS = CUT.history("test"), CUT.targets("test")
USERS = CUT.users("test")


def lists(k=30):
    items = np.stack([np.random.default_rng(int(u)).permutation(60)[:k] for u in USERS]).astype(np.int32)
    return Ranking(users=USERS, items=items, scores=np.tile(-np.arange(k, dtype=np.float32), (USERS.size, 1)))


def gain(place):
    return 1 / np.log2(place + 2) if place < 10 else 0.0


def random_answer(request):
    return ranked(generator(3, request.user).permutation(len(shown_titles(request))) + 1)


def probe(reply, **options):
    return position_probe(ListwiseReranker(FakeChat(reply), PROMPT), HISTORY, lists(), TARGETS, **options)


def test_an_echo_ranks_the_truth_where_it_stands():
    found = probe(echoed)
    np.testing.assert_allclose(found.means, [gain(place) for place in (0, 5, 10, 15, 19)])
    assert found.spread == pytest.approx(1.0) and found.asked == found.users.size == USERS.size
    assert found.usage.llm_calls == 5 * USERS.size


def test_a_reader_does_not_care_where_the_truth_stands():
    found = probe(by(lambda title: derive_seed(0, title)))
    assert found.spread == 0 and 0 < found.means[0] < 1
    np.testing.assert_array_equal(found.values, np.repeat(found.values[:, :1], 5, axis=1))


def test_a_random_model_is_at_chance_everywhere():
    found = probe(random_answer)
    assert found.chance == pytest.approx(sum(gain(place) for place in range(20)) / 20)
    assert np.abs(found.means - found.chance).max() < 4 * found.standard_error


def test_the_truth_is_shown_at_its_position_among_the_same_others():
    chat = FakeChat(echoed)
    reranker = ListwiseReranker(chat, PROMPT, replicas=3, promotion_cap=1, depth=30, min_agreement=0.5)
    position_probe(reranker, HISTORY, lists(), TARGETS, positions=[0, 7])
    n = USERS.size
    for row, user in enumerate(USERS.tolist()):
        truth = HISTORY.titles[TARGETS.history(user)[0]]
        first, second = shown_titles(chat.asked[row]), shown_titles(chat.asked[n + row])
        assert first[0] == second[7] == truth and len(first) == 20
        assert [t for t in first if t != truth] == [t for t in second if t != truth]
        expected = [HISTORY.titles[i] for i in lists().items[row, :20] if HISTORY.titles[i] != truth][:19]
        assert first[1:] == expected


def test_who_has_an_untitled_truth_is_left_out_and_nobody_is_shown_untitled_others():
    truths = {TARGETS.history(user)[0] for user in USERS.tolist()}
    blank = sorted(truths)[::2] + [item for item in range(60) if item not in truths][::2]
    titles = [None if item in blank else title for item, title in enumerate(HISTORY.titles)]
    kept = [user for user in USERS.tolist() if TARGETS.history(user)[0] not in blank]
    reader = by(lambda title: derive_seed(0, title))
    long = Ranking(
        users=USERS,
        items=np.stack([np.random.default_rng(int(u)).permutation(60) for u in USERS]).astype(np.int32),
        scores=np.tile(-np.arange(60, dtype=np.float32), (USERS.size, 1)),
    )
    chat = FakeChat(reader)
    found = position_probe(ListwiseReranker(chat, PROMPT), HISTORY, long, TARGETS, titles=titles)
    assert found.users.tolist() == kept and 0 < found.asked == len(kept) < USERS.size
    assert {len(shown_titles(request)) for request in chat.asked} == {20}
    assert found.spread == 0 and 0 < found.means[0] < 1


@pytest.mark.slow
def test_users_without_an_answer_are_left_out_of_all_positions():
    silent = PROMPT.for_history(HISTORY.history(int(USERS[0])).tolist(), _values(USERS[0]), HISTORY.titles)
    chat = FakeChat(echoed, fail=lambda r: "deadline" if r.user.startswith(silent) else None)
    found = position_probe(ListwiseReranker(chat, PROMPT), HISTORY, lists(), TARGETS)
    assert USERS[0] not in found.users and found.asked == USERS.size > found.users.size
    nobody = position_probe(ListwiseReranker(FakeChat(lambda r: ""), PROMPT), HISTORY, lists(), TARGETS)
    assert nobody.users.size == 0 and np.isnan(nobody.means).all()


def _values(user):
    return HISTORY.values[HISTORY.indptr[user] : HISTORY.indptr[user + 1]]


def test_first_tokens_are_probed_the_same_way():
    lm = FakeLLM(score=lambda prompt, answer: -float(ord(answer.strip())))
    found = position_probe(FirstTokenReranker(lm, PROMPT), HISTORY, lists(), TARGETS, positions=[0, 5])
    np.testing.assert_allclose(found.means, [1.0, gain(5)])


@pytest.mark.slow
def test_an_echo_is_cautioned_and_a_reader_is_not():
    def told(reply, **options):
        return cautions(ListwiseReranker(FakeChat(reply), PROMPT, **options).rerank(HISTORY, lists()))

    assert told(by(lambda title: derive_seed(0, title)), replicas=3) == []
    repeats, decides = told(echoed, replicas=3)
    assert "repeats the order" in repeats and "tau 1.00" in repeats
    assert "The order shown decides" in decides
    (kept,) = told(lambda request: "no")
    assert f"{USERS.size} of {USERS.size} users keep the cheap list: {USERS.size} unparsed." in kept
    (unstable,) = [line for line in told(random_answer, replicas=2) if "decides" in line]
    assert "near 0 where orders are shuffled" in unstable
    one = ListwiseReranker(FakeChat(echoed), PROMPT).rerank(HISTORY, lists())
    assert one.report["cautions"] == cautions(one) != []


def test_bad_input_is_named():
    reranker = ListwiseReranker(FakeChat(), PROMPT)
    with pytest.raises(ConfigError, match=r"positions must lie in 0..19, the places of a window; got \[20\]"):
        position_probe(reranker, HISTORY, lists(), TARGETS, positions=[20])
    with pytest.raises(DataError, match="no user has a held-out item and 20 candidates"):
        nothing = TARGETS.where(np.zeros(TARGETS.n, dtype=bool))
        position_probe(reranker, HISTORY, lists(), nothing)
