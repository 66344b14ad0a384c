import json

import numpy as np
import pytest
import torch

from frugalrec.errors import DataError
from frugalrec.grounding.beam_decoding import BeamGrounder
from frugalrec.grounding.item_head import ItemHeadGrounder
from frugalrec.grounding.measuring import counted_flops, measure_grounders
from frugalrec.llm.beam_search import BeamSettings
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.tiny_models import tiny_t5
from frugalrec.testing.toys import cycle_dataset

PROMPT = NextTitlePrompt(noun="film", window=4)
DATA = cycle_dataset(n_users=9, n_items=20, length=5)
USERS = np.array([4, 0, 8])
WIDTH, FF, LAYERS, VOCABULARY, BEAMS, STEPS = 32, 64, 2, 384, 4, 3


def products(tokens, *shapes):
    """Operations of matrix products, 2 a multiply-add."""
    return sum(2 * tokens * rows * columns for rows, columns in shapes)


def attention(queries, keys):
    return 2 * 2 * queries * keys * WIDTH


def encoder(n):
    square = [(WIDTH, WIDTH)] * 4
    return LAYERS * (products(n, *square, (WIDTH, FF), (FF, WIDTH)) + attention(n, n))


def decoder(new, seen, n, first):
    """Operations for `new` tokens that see `seen` of the decoder's own, over n encoder states."""
    own = products(new, *[(WIDTH, WIDTH)] * 6, (WIDTH, FF), (FF, WIDTH)) + attention(new, seen)
    return LAYERS * (own + attention(new, n) + first * products(n, *[(WIDTH, WIDTH)] * 2))


def start(n):
    """Operations for one decoder token, whose query meets the n encoder states as they are, with 4 heads."""
    return LAYERS * (products(1, *[(WIDTH, WIDTH)] * 6, (WIDTH, FF), (FF, WIDTH)) + 4 * attention(1, n))


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return LocalLM.load(tiny_t5(tmp_path_factory.mktemp("t5")))


@pytest.mark.slow
def test_operations_are_those_of_arithmetic(lm):
    titles = [f"Film {item}" for item in range(20)]
    settings = BeamSettings(beams=BEAMS, max_new_tokens=STEPS)
    ways = {
        "head": ItemHeadGrounder(lm, PROMPT, np.ones((20, WIDTH), np.float32), titles=titles),
        "shared": BeamGrounder(lm, PROMPT, settings=settings, titles=titles),
        "copied": BeamGrounder(
            lm, PROMPT, settings=BeamSettings(beams=BEAMS, max_new_tokens=STEPS, shared=False), titles=titles
        ),
    }
    costs = measure_grounders(ways, DATA, USERS[:1], k=5, flop_users=1)
    n = len(lm.encode([PROMPT.question([titles[i] for i in DATA.history(4)])])[0])
    head = encoder(n) + start(n) + products(1, (WIDTH, 20))
    assert costs["head"].gflops * 1e9 == pytest.approx(head, abs=0.5)
    words = products(1, (WIDTH, VOCABULARY))
    shared = encoder(n) + decoder(1, 1, n, True) + words
    shared += sum(decoder(BEAMS, 1 + BEAMS * step, n, False) + BEAMS * words for step in range(1, STEPS))
    assert costs["shared"].gflops * 1e9 == pytest.approx(shared, abs=0.5)
    copied = encoder(n) + sum(decoder(1, 1 + step, n, step == 0) + words for step in range(STEPS))
    assert costs["copied"].gflops * 1e9 == pytest.approx(BEAMS * copied, abs=0.5)
    assert (costs["shared"].tokens_in, costs["copied"].tokens_in) == (n, BEAMS * n)
    assert costs["shared"].tokens_out == costs["copied"].tokens_out == BEAMS * (STEPS - 1)
    assert costs["head"].tokens_out == costs["head"].texts == 0


def test_attention_is_counted_however_it_is_computed():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, n, 8) for n in (5, 7, 7))
    with counted_flops() as fused:
        torch.nn.functional.scaled_dot_product_attention(query, key, value)
    with counted_flops() as plain:
        (query @ key.transpose(2, 3)).softmax(dim=-1) @ value
    assert fused() == plain() == 2 * 2 * 2 * 4 * 5 * 7 * 8


class Writer(BeamGrounder):
    """Answers as it is told, and says what became of it."""

    def __init__(self, lines):
        self.lines, self.calls = lines, []

    def _ground(self, histories, users, k, seen, progress):
        from frugalrec.grounding.beam_decoding import Outputs
        from frugalrec.ledger import Usage
        from frugalrec.types import Ranking

        self.calls.append(users.tolist())
        rows = np.array([self.lines[int(user)] for user in users], dtype=np.int32).reshape(-1, 4)
        self.outputs = Outputs(
            written=rows[:, 0], invalid=rows[:, 1], duplicate=rows[:, 2], seen=rows[:, 2] * 0
        )
        items = np.where(np.arange(k) < rows[:, 3:], np.arange(k), -1).astype(np.int32)
        scores = np.where(items >= 0, 0.0, -np.inf).astype(np.float32)
        n = users.size
        return Ranking(users=users, items=items, scores=scores), Usage(
            tokens_in=7 * n, tokens_out=n, llm_calls=n
        )


def test_rates_and_tokens_are_means_over_users():
    way = Writer({4: (10, 5, 1, 4), 0: (10, 0, 3, 7), 8: (20, 1, 0, 9)})
    costs = measure_grounders({"way": way, "again": way}, DATA, USERS, k=9, repeats=2, flop_users=0)
    cost = costs["way"]
    assert (cost.tokens_in, cost.tokens_out, cost.users) == (7, 1, 3)
    assert cost.texts == pytest.approx(40 / 3) and cost.listed == pytest.approx(20 / 3)
    assert cost.invalid_rate == pytest.approx(6 / 40) and cost.duplicate_rate == pytest.approx(4 / 40)
    assert 0 <= cost.p50_ms <= cost.p95_ms and cost.batch_ms > 0 and cost.gflops is None
    alone = [[4]] * 4 + [[0]] * 4 + [[8]] * 4  # both ways in turn, twice each
    assert way.calls == [[4], [4], *alone, [4, 0, 8], [4, 0, 8]]
    assert json.loads(json.dumps(cost.to_dict()))["users"] == 3


def test_nobody_cannot_be_measured():
    with pytest.raises(DataError, match="at least one user and one repeat, not 0 and 1"):
        measure_grounders({}, DATA, USERS[:0])
    with pytest.raises(DataError, match="not 3 and 0"):
        measure_grounders({}, DATA, USERS, repeats=0)
