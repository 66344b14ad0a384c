import numpy as np
import pytest

from frugalrec.errors import DataError
from frugalrec.grounding.candidate_decoding import CandidateGrounder
from frugalrec.grounding.decoding import TrieGrounder
from frugalrec.grounding.likelihood import TitleLikelihood
from frugalrec.grounding.trie import TitleTrie
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.grounding_contract import GrounderContract
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking

PROMPT = NextTitlePrompt(noun="film", window=4)
DATA = cycle_dataset(n_users=9, n_items=20, length=5)
TITLES = [f"Film {item}" for item in range(DATA.n_items)]
TITLES[7] = TITLES[11] = TITLES[3]
USERS = np.array([4, 0, 8, 2, 5])


def given(users):
    """Twelve candidates of each user, and a gap."""
    lists = [np.random.default_rng([7, int(user)]).permutation(20)[:12] for user in users]
    return np.array([[-1, *own, own[0]] for own in lists])


@pytest.fixture(scope="module", params=[tiny_llama, tiny_t5])
def lm(request, tmp_path_factory):
    return LocalLM.load(request.param(tmp_path_factory.mktemp("lm")))


def grounder(lm, candidates=given, **options):
    return CandidateGrounder(lm, PROMPT, candidates, **{"titles": TITLES, **options})


@pytest.mark.slow
def test_scores_are_those_of_the_trie_and_of_whole_texts(lm):
    ranking, usage = grounder(lm).ground(DATA, USERS, k=14, seen="include")
    assert (np.sort(ranking.items[:, :12], axis=1) == np.sort(given(USERS)[:, 1:13], axis=1)).all()
    assert (ranking.items[:, 12:] == -1).all() and usage.tokens_in > 0
    whole, _ = TitleLikelihood(lm, PROMPT).score(DATA, ranking, TITLES)
    np.testing.assert_allclose(ranking.scores[:, :12], whole[:, :12], atol=1e-4)
    tried, _ = TrieGrounder(lm, PROMPT, beams=30, titles=TITLES).ground(DATA, USERS, k=20, seen="include")
    for row, own in enumerate(ranking.items):
        kept = np.isin(tried.items[row], own)
        np.testing.assert_array_equal(tried.items[row][kept], own[:12])  # namesakes in the same order too
        np.testing.assert_allclose(tried.scores[row][kept], ranking.scores[row, :12], atol=1e-4)


@pytest.mark.slow
def test_any_tokens_can_be_ids(lm):
    rng = np.random.default_rng(3)
    sequences = [[*rng.integers(10, 14, size=2).tolist(), 20 + item, 1] for item in range(20)]
    ranking, _ = grounder(lm, trie=TitleTrie.build(sequences)).ground(DATA, USERS, k=12, seen="include")
    import torch

    for row, user in enumerate(USERS):
        (prompt,) = lm.encode([PROMPT.question([TITLES[i] for i in DATA.history(int(user))])])
        for item, score in zip(ranking.items[row], ranking.scores[row], strict=True):
            answer = sequences[item]
            with torch.no_grad():
                if lm.is_encoder_decoder:
                    loss = lm.network(torch.tensor([prompt]), labels=torch.tensor([answer])).loss
                else:
                    labels = torch.tensor([[*[-100] * len(prompt), *answer]])
                    loss = lm.network(torch.tensor([[*prompt, *answer]]), labels=labels).loss
            assert score == pytest.approx(-4 * float(loss), rel=1e-4)


def test_batches_do_not_matter_and_seen_items_go(lm):
    whole, _ = grounder(lm).ground(DATA, USERS, k=8)
    alone, _ = grounder(lm, users_per_batch=1).ground(DATA, USERS, k=8)
    np.testing.assert_array_equal(whole.items, alone.items)
    np.testing.assert_allclose(whole.scores, alone.scores, atol=1e-4)
    for user, row in zip(USERS, whole.items, strict=True):
        assert not np.isin(row, DATA.history(int(user))).any()
    none, usage = grounder(lm, lambda users: np.full((users.size, 3), -1)).ground(DATA, USERS, k=3)
    assert (none.items == -1).all() and np.isneginf(none.scores).all() and usage.tokens_in == 0


@pytest.mark.parametrize("lm", [tiny_t5], indirect=True)
class TestCandidateContract(GrounderContract):
    @pytest.fixture(autouse=True)
    def _model(self, lm):
        self.lm = lm

    def make(self):
        return grounder(self.lm, lambda users: np.tile(np.arange(20), (users.size, 1)))


def test_misfits_are_named(lm):
    for bad in (
        lambda users: np.arange(3),
        lambda users: np.full((2, 3), 1),
        lambda users: np.full((5, 1), 20),
    ):
        with pytest.raises(DataError, match="candidates for 5 users must be item codes below 20"):
            grounder(lm, bad).ground(DATA, USERS)
    assert isinstance(grounder(lm).ground(DATA, USERS)[0], Ranking)
