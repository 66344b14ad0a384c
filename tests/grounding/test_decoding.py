from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.grounding.base import filled
from frugalrec.grounding.decoding import TrieGrounder
from frugalrec.grounding.likelihood import TitleLikelihood
from frugalrec.llm.loading import quiet_peft
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.grounding_contract import GrounderContract
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking

PROMPT = NextTitlePrompt(noun="film", window=4)
DATA = cycle_dataset(n_users=9, n_items=20, length=5)
# Items 3, 7 and 11 share a title, and so do 0 and 19.
TITLES = [f"Film {item}" for item in range(DATA.n_items)]
TITLES[7] = TITLES[11] = TITLES[3]
TITLES[19] = TITLES[0]
USERS = np.array([4, 0, 8, 2, 5])


@pytest.fixture(scope="module", params=[tiny_llama, tiny_t5])
def lm(request, tmp_path_factory):
    return LocalLM.load(request.param(tmp_path_factory.mktemp("lm")))


def grounder(lm, **options):
    return TrieGrounder(lm, PROMPT, **{"beams": 30, "titles": TITLES, **options})


def test_every_item_comes_once_with_the_score_of_its_title(lm):
    ranking, usage = grounder(lm).ground(DATA, USERS, k=25, seen="include")
    questions = [PROMPT.question([TITLES[i] for i in DATA.history(int(u))]) for u in USERS]
    texts = [PROMPT.answer(title) + lm.tokenizer.eos_token for title in TITLES]
    expected = np.stack(lm.loglikelihood(questions, [texts] * USERS.size)[0])
    assert (np.sort(ranking.items[:, :20], axis=1) == np.arange(20)).all()
    assert (ranking.items[:, 20:] == -1).all() and np.isneginf(ranking.scores[:, 20:]).all()
    found = np.take_along_axis(expected, ranking.items[:, :20], axis=1)
    np.testing.assert_allclose(ranking.scores[:, :20], found, atol=1e-4)
    assert (np.diff(ranking.scores[:, :20], axis=1) <= 0).all()
    for row in ranking.items:
        place = {int(item): at for at, item in enumerate(row)}
        assert place[3] + 2 == place[7] + 1 == place[11]  # one title: neighbours, in order of item code
        assert place[0] + 1 == place[19]
    assert usage.llm_calls == USERS.size and usage.tokens_in == sum(map(len, lm.encode(questions)))
    assert usage.tokens_out > 0 and usage.wall_s > 0


@pytest.mark.slow
@pytest.mark.parametrize("beams", [3, 30])
def test_neither_batches_nor_the_order_of_users_matter(lm, beams):
    whole, _ = grounder(lm, beams=beams).ground(DATA, USERS, k=8)
    told = []
    small = LocalLM(lm.network, lm.tokenizer, model="small", max_batch_tokens=1)
    alone, _ = grounder(small, beams=beams).ground(DATA, USERS, k=8, progress=lambda *at: told.append(at))
    assert told == [(done, 5) for done in range(1, 6)]
    order = np.array([3, 1, 4, 0, 2])
    turned, _ = grounder(lm, beams=beams).ground(DATA, USERS[order], k=8)
    for other in (alone, turned.take(np.argsort(order))):
        np.testing.assert_array_equal(other.users, whole.users)
        np.testing.assert_array_equal(other.items, whole.items)
        np.testing.assert_allclose(other.scores, whole.scores, atol=1e-4)


def test_item_codes_do_not_matter(lm):
    codes = np.random.default_rng(0).permutation(DATA.n_items)  # the new code of each item
    back = np.argsort(codes)
    renamed = replace(DATA, items=codes[DATA.items].astype(np.int32))
    first, _ = grounder(lm, beams=5).ground(DATA, USERS, k=30)
    second, _ = grounder(lm, beams=5, titles=[TITLES[i] for i in back]).ground(renamed, USERS, k=30)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)
    for one, other in zip(first.items, second.items, strict=True):
        assert {int(i) for i in one if i >= 0} == {int(back[i]) for i in other if i >= 0}
        assert [TITLES[i] for i in one if i >= 0] == [TITLES[back[i]] for i in other if i >= 0]


def test_seen_items_are_left_out_but_not_their_namesakes(lm):
    histories = DATA.where(DATA.items != 7)
    ranking, _ = grounder(lm).ground(histories, USERS, k=20)
    for user, row in zip(USERS, ranking.items, strict=True):
        listed = row[row >= 0].tolist()
        assert sorted(listed) == sorted(set(range(20)) - set(histories.history(int(user)).tolist()))
        assert 7 in listed


@pytest.mark.slow
def test_a_prior_moves_the_list_and_may_differ_by_user(lm):
    plain, _ = grounder(lm).ground(DATA, USERS, k=20, seen="include")
    popular = np.random.default_rng(3).normal(scale=20, size=20)
    moved, _ = grounder(lm, prior=popular).ground(DATA, USERS, k=20, seen="include")
    scores = np.full((USERS.size, 20), np.nan)
    np.put_along_axis(scores, plain.items, plain.scores, axis=1)
    expected = np.argsort(-(scores + popular), axis=1, kind="stable")
    np.testing.assert_array_equal(moved.items, expected)
    own = lambda users: -50.0 * (np.arange(20) != np.asarray(users)[:, None])  # noqa: E731
    histories = DATA.where(DATA.rows != 8)  # questions of different lengths: batches change the order
    lists, _ = grounder(lm, prior=own, beams=1).ground(histories, USERS, k=1, seen="include")
    np.testing.assert_array_equal(lists.items[:, 0], USERS)  # one beam finds it, for it knows where to look


@pytest.mark.parametrize("lm", [tiny_llama], indirect=True)
class TestTrieContract(GrounderContract):
    @pytest.fixture(autouse=True)
    def _model(self, lm):
        self.lm = lm

    def make(self):
        return grounder(self.lm)


@pytest.mark.slow
def test_an_adapter_on_the_network_takes_part(lm, tmp_path):
    peft = pytest.importorskip("peft")
    family = "SEQ_2_SEQ_LM" if lm.is_encoder_decoder else "CAUSAL_LM"
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type=family, init_lora_weights=False)
    folder = (tiny_t5 if lm.is_encoder_decoder else tiny_llama)(tmp_path / "base")
    with quiet_peft():
        peft.get_peft_model(LocalLM.load(folder).network, config).save_pretrained(str(tmp_path / "tuned"))
    tuned = LocalLM.load(folder, adapter=tmp_path / "tuned")
    ranking, _ = grounder(tuned).ground(DATA, USERS, k=20, seen="include")
    plain, _ = grounder(lm).ground(DATA, USERS, k=20, seen="include")
    scores, _ = TitleLikelihood(tuned, PROMPT).score(DATA, ranking, TITLES)
    np.testing.assert_allclose(ranking.scores, scores, atol=1e-4)
    assert np.abs(ranking.scores - plain.scores).max() > 0.1


def test_half_precision_keeps_titles_apart(tmp_path):
    folder = tiny_llama(tmp_path)
    half, full = LocalLM.load(folder, dtype="bfloat16"), LocalLM.load(folder, dtype="float32")
    found, _ = grounder(half).ground(DATA, USERS, k=20, seen="include")
    whole, _ = TitleLikelihood(full, PROMPT).score(DATA, found, TITLES)
    assert (np.sort(found.items, axis=1) == np.arange(20)).all()
    assert np.abs(found.scores - whole).mean() < 0.02 * np.abs(whole).mean()
    names = [len({TITLES[item] for item in row}) for row in found.items]
    assert [len(set(row.tolist())) for row in found.scores] == names  # only namesakes tie


def test_empty_places_are_filled_from_other_lists():
    ranking = Ranking(
        users=np.array([3, 1, 2], dtype=np.int32),
        items=np.array([[5, 2, -1, -1], [-1] * 4, [1, 2, 3, 4]], dtype=np.int32),
        scores=np.array([[-1.0, -4.0, -np.inf, -np.inf], [-np.inf] * 4, [4, 3, 2, 1]], dtype=np.float32),
    )
    other = Ranking(
        users=ranking.users,
        items=np.array([[2, 7, 5], [9, 8, -1], [6, 7, 8]], dtype=np.int32),
        scores=np.zeros((3, 3), dtype=np.float32),
    )
    found = filled(ranking, other)
    np.testing.assert_array_equal(found.items, [[5, 2, 7, -1], [9, 8, -1, -1], [1, 2, 3, 4]])
    np.testing.assert_array_equal(found.scores[0], [-1, -4, -5, -np.inf])
    np.testing.assert_array_equal(found.scores[1], [-1, -2, -np.inf, -np.inf])
    np.testing.assert_array_equal(found.scores[2], ranking.scores[2])
    with pytest.raises(DataError, match="for the same users in the same order"):
        filled(ranking, other.take(np.array([1, 0, 2])))


def test_the_trie_is_built_once_a_catalogue(lm):
    ground = TrieGrounder(lm, PROMPT)
    assert ground.trie(DATA) is ground.trie(DATA)
    frame = pl.DataFrame({"user": ["a", "a"], "item": ["x", "y"]})
    other = Dataset.from_frames(
        frame, pl.DataFrame({"item": ["x", "y"], "title": ["Heat", "Alien"]}), name="o"
    )
    assert ground.trie(other).n_titles == 2


@pytest.mark.slow
def test_bad_input_is_named(lm):
    with pytest.raises(ConfigError, match="beams must be at least 1, not 0"):
        grounder(lm, beams=0).ground(DATA, USERS)
    with pytest.raises(DataError, match="expected 20 titles, one an item; got 2"):
        grounder(lm, titles=["a", "b"]).ground(DATA, USERS)
    for shape in ((7,), (1, 20), (), (USERS.size, 20)):  # rows of an array would meet other users
        with pytest.raises(
            DataError, match=r"the prior must be \(20,\), not .* give a function of user codes"
        ):
            grounder(lm, prior=np.zeros(shape)).ground(DATA, USERS)
    with pytest.raises(
        DataError, match=r"must be \(5, 20\), not \(20,\); its function was asked for 5 users"
    ):
        grounder(lm, prior=lambda users: np.zeros(20)).ground(DATA, USERS)
    with pytest.raises(DataError, match="the prior holds NaN"):
        grounder(lm, prior=np.full(20, np.nan)).ground(DATA, USERS)


def test_long_histories_lose_their_oldest_titles_and_what_cannot_fit_is_refused(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path, max_position_embeddings=100))
    ground = TrieGrounder(lm, replace(PROMPT, window=40), beams=5)
    long = cycle_dataset(n_users=3, n_items=20, length=30)
    ranking, usage = ground.ground(long, np.arange(3), k=4, seen="include")
    assert (ranking.items >= 0).all()
    assert usage.tokens_in <= 3 * (100 - ground.trie(long).longest)
    with pytest.raises(ModelError, match="the question of user 0 has .* holds 100"):
        TrieGrounder(lm, PROMPT, titles=["very " * 60 + str(i) for i in range(20)]).ground(long, np.arange(3))


def test_texts_beyond_what_all_layers_see_are_refused(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path))
    lm.network.config.sliding_window = 12
    with pytest.raises(ModelError, match="take up to .* look back 12 only"):
        TrieGrounder(lm, PROMPT).ground(DATA, USERS)


def test_a_network_that_ignores_the_tree_is_refused(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path))
    forward = lm.network.forward
    lm.network.forward = lambda *args, position_ids=None, **options: forward(*args, **options)
    with pytest.raises(ModelError, match="cannot read several continuations of one prompt at once"):
        TrieGrounder(lm, PROMPT).ground(DATA, USERS)
