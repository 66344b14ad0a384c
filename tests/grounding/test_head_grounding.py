import numpy as np
import pytest
import torch

from frugalrec.errors import DataError
from frugalrec.grounding.item_head import ItemHeadGrounder
from frugalrec.llm.last_states import last_states
from frugalrec.llm.loading import quiet_peft
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.queries import decoder_start
from frugalrec.testing.grounding_contract import GrounderContract
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5
from frugalrec.testing.toys import cycle_dataset

PROMPT = NextTitlePrompt(noun="film", window=4)
DATA = cycle_dataset(n_users=9, n_items=20, length=5)
TITLES = [f"Film {item} {'x' * (item % 7)}" for item in range(DATA.n_items)]
USERS = np.array([4, 0, 8, 2, 5])
RNG = np.random.default_rng(0)
VECTORS, NARROW = RNG.normal(size=(20, 32)), RNG.normal(size=(20, 6))
PROJECTION, BIAS = RNG.normal(size=(6, 32)), RNG.normal(size=20)
TEXTS = ["Films watched: Alien (1979), Heat", "the quick brown fox", "Yes"]


@pytest.fixture(scope="module", params=[tiny_llama, tiny_qwen, tiny_t5])
def lm(request, tmp_path_factory):
    return LocalLM.load(request.param(tmp_path_factory.mktemp("lm")))


def grounder(lm, vectors=VECTORS, **options):
    return ItemHeadGrounder(lm, PROMPT, vectors, titles=TITLES, **options)


@torch.no_grad()
def test_states_are_those_of_whole_texts_and_give_the_models_own_logits(lm):
    prompts = lm.encode(TEXTS)
    states = last_states(lm, prompts)
    head = lm.network.get_output_embeddings()
    for prompt, state in zip(prompts, states, strict=True):
        ids = torch.tensor([prompt])
        if lm.is_encoder_decoder:
            logits = lm.network(ids, decoder_input_ids=torch.tensor([[decoder_start(lm)]])).logits
        else:
            logits = lm.network(ids).logits
        np.testing.assert_allclose(head(state), logits[0, -1], atol=1e-4)


@torch.no_grad()
def test_scores_are_products_of_vectors(lm):
    head = grounder(lm, NARROW, projection=PROJECTION, bias=BIAS, scale=0.3)
    ranking, usage = head.ground(DATA, USERS, k=25, seen="include")
    questions = [PROMPT.question([TITLES[i] for i in DATA.history(int(u))]) for u in USERS]
    assert usage.tokens_in == sum(map(len, lm.encode(questions))) and usage.tokens_out == 0
    for row, question in enumerate(questions):
        state = last_states(lm, lm.encode([question]))[0].tolist()
        user = [0.3 * sum(w * x for w, x in zip(line, state, strict=True)) for line in PROJECTION]
        expected = [
            sum(u * v for u, v in zip(user, item, strict=True)) + b
            for item, b in zip(NARROW, BIAS, strict=True)
        ]
        order = sorted(range(20), key=lambda item: -expected[item])
        np.testing.assert_array_equal(ranking.items[row], [*order, *[-1] * 5])
        np.testing.assert_allclose(ranking.scores[row, :20], np.array(expected)[order], rtol=1e-3, atol=1e-4)
    plain, _ = grounder(lm).ground(DATA, USERS, k=20, seen="include")
    same, _ = grounder(lm, projection=np.eye(32), bias=np.zeros(20)).ground(DATA, USERS, k=20, seen="include")
    np.testing.assert_array_equal(plain.items, same.items)


def test_neither_batches_nor_the_order_of_items_matter(lm):
    whole, _ = grounder(lm).ground(DATA, USERS, k=8)
    told = []
    small = LocalLM(lm.network, lm.tokenizer, model="small", max_batch_tokens=1)
    alone, _ = grounder(small).ground(DATA, USERS, k=8, progress=lambda *at: told.append(at))
    assert told == [(n, 5) for n in range(1, 6)]
    np.testing.assert_array_equal(alone.items, whole.items)
    np.testing.assert_allclose(alone.scores, whole.scores, atol=1e-3)
    order = np.random.default_rng(1).permutation(20)
    turned, _ = grounder(lm, VECTORS[order], bias=None).ground(DATA, USERS, k=8, seen="include")
    straight, _ = grounder(lm).ground(DATA, USERS, k=8, seen="include")
    np.testing.assert_array_equal(order[turned.items], straight.items)


@pytest.mark.slow
def test_an_adapter_takes_part(lm, tmp_path):
    peft = pytest.importorskip("peft")
    family = "SEQ_2_SEQ_LM" if lm.is_encoder_decoder else "CAUSAL_LM"
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type=family, init_lora_weights=False)
    folder = (tiny_t5 if lm.is_encoder_decoder else tiny_llama)(tmp_path / "base")
    with quiet_peft():
        network = peft.get_peft_model(LocalLM.load(folder).network, config).eval()
    tuned = LocalLM(network, lm.tokenizer, model="tuned")
    with torch.no_grad():
        one = last_states(tuned, lm.encode(TEXTS))
        with network.disable_adapter():
            other = last_states(tuned, lm.encode(TEXTS))
    assert (one - other).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("lm", [tiny_t5], indirect=True)
def test_the_short_way_through_a_decoder_gives_what_the_decoder_gives(lm, monkeypatch):
    prompts = lm.encode(TEXTS)
    short = last_states(lm, prompts)
    monkeypatch.setattr("frugalrec.llm.last_states._is_plain_t5", lambda decoder: False)
    np.testing.assert_allclose(short, last_states(lm, prompts), atol=1e-5)
    alone = torch.cat([last_states(lm, [prompt]) for prompt in prompts])
    np.testing.assert_allclose(short, alone, atol=1e-5)


@pytest.mark.parametrize("lm", [tiny_llama], indirect=True)
class TestItemHeadContract(GrounderContract):
    @pytest.fixture(autouse=True)
    def _model(self, lm):
        self.lm = lm

    def make(self):
        return grounder(self.lm)


def test_misfits_are_named(lm):
    for vectors, projection in (
        (VECTORS[:7], None),
        (NARROW, None),
        (NARROW, PROJECTION.T),
        (VECTORS[0], None),
    ):
        with pytest.raises(DataError, match="do not fit 20 items and states of 32 numbers"):
            grounder(lm, vectors, projection=projection).ground(DATA, USERS)
    with pytest.raises(DataError, match=r"the bias must be \(20,\), not \(3,\)"):
        grounder(lm, bias=BIAS[:3]).ground(DATA, USERS)
