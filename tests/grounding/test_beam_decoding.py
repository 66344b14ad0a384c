from dataclasses import replace

import numpy as np
import pytest

from frugalrec.grounding.beam_decoding import BeamGrounder
from frugalrec.llm.beam_search import BeamSettings, beam_search
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.testing.grounding_contract import GrounderContract
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5
from frugalrec.testing.toys import cycle_dataset

PROMPT = NextTitlePrompt(noun="film", window=4)
DATA = cycle_dataset(n_users=9, n_items=20, length=5)
USERS = np.array([4, 0, 8, 2, 5])
SETTINGS = BeamSettings(beams=12, max_new_tokens=1)


@pytest.fixture(scope="module", params=[tiny_llama, tiny_t5])
def lm(request, tmp_path_factory):
    return LocalLM.load(request.param(tmp_path_factory.mktemp("lm")))


def texts_of(lm, tokens):
    return [lm.tokenizer.decode(own, skip_special_tokens=True).strip() for own in tokens]


@pytest.fixture(scope="module")
def titles(lm):
    """Titles that the model writes for users without a history; items 5 and 9 share one."""
    written, _ = beam_search(lm, lm.encode([PROMPT.question([])]), replace(SETTINGS, beams=80))
    found = [t for t in dict.fromkeys(texts_of(lm, written.tokens[0])) if len(t) > 1 and t.isalnum()]
    names = [*found[::2], *[f"Film {item}" for item in range(20)]][:20]
    names[9] = names[5]
    return names


def grounder(lm, titles, **options):
    return BeamGrounder(lm, PROMPT, **{"settings": SETTINGS, "titles": titles, **options})


def test_texts_of_items_are_listed_the_rest_is_counted(lm, titles):
    ground = grounder(lm, titles)
    ranking, usage = ground.ground(DATA, USERS, k=15)
    questions = [PROMPT.question([titles[i] for i in DATA.history(int(u))]) for u in USERS]
    written, spent = beam_search(lm, lm.encode(questions), SETTINGS)
    total = 0
    for row, user in enumerate(USERS):
        had, listed, invalid, double, seen = set(DATA.history(int(user)).tolist()), [], 0, 0, 0
        texts = texts_of(lm, written.tokens[row])
        for number, text in enumerate(texts):
            items = [item for item, title in enumerate(titles) if title == text]
            fresh = [(item, written.scores[row, number]) for item in items if item not in had]
            if not items:
                invalid += 1
            elif text in texts[:number]:
                double += 1
            elif not fresh:
                seen += 1
            else:
                listed += fresh
        n = len(listed)
        total += n
        assert ranking.items[row, :n].tolist() == [item for item, _ in listed]
        assert ranking.scores[row, :n].tolist() == [score for _, score in listed]
        assert (ranking.items[row, n:] == -1).all() and np.isneginf(ranking.scores[row, n:]).all()
        counts = ground.outputs
        assert [c[row] for c in (counts.written, counts.invalid, counts.duplicate, counts.seen)] == [
            12, invalid, double, seen,
        ]  # fmt: skip
    assert total > 0 and counts.invalid.sum() > 0
    assert usage.tokens_in == spent.tokens_in and usage.tokens_out == spent.tokens_out


def test_one_text_in_two_splits_counts_once(lm, monkeypatch):
    from frugalrec.llm import beam_search as module

    split = lm.tokenizer(" quick", add_special_tokens=False).input_ids
    letters = [
        lm.tokenizer(part, add_special_tokens=False).input_ids[0] for part in ("Ġ", "q", "u", "i", "c", "k")
    ]
    letters[0] = lm.tokenizer.convert_tokens_to_ids("Ġ")
    assert len(split) < len(letters)
    texts = [split + [1], letters, lm.tokenizer(" dog").input_ids, lm.tokenizer(" x").input_ids]
    found = module.Written(tokens=[texts], scores=np.array([[-1.0, -2.0, -3.0, -4.0]], dtype=np.float32))
    monkeypatch.setattr(module, "beam_search", lambda *_, **__: (found, None))
    names = [f"Film {item}" for item in range(20)]
    names[3], names[12], names[17] = "quick", "dog", "quick"
    ground = grounder(lm, names)
    ranking, _ = ground.ground(DATA, np.array([0]), k=5, seen="include")
    assert ranking.items.tolist() == [[3, 17, 12, -1, -1]]
    assert ranking.scores.tolist() == [[-1, -1, -3, -np.inf, -np.inf]]
    counts = ground.outputs
    assert (counts.written, counts.invalid, counts.duplicate, counts.seen) == (4, 1, 1, 0)


def test_shared_prompts_and_copies_list_the_same(lm, titles):
    settings = BeamSettings(beams=6, max_new_tokens=3, length_penalty=0.0)
    one, _ = grounder(lm, titles, settings=settings).ground(DATA, USERS, k=6)
    other, _ = grounder(lm, titles, settings=replace(settings, shared=False)).ground(DATA, USERS, k=6)
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


@pytest.mark.parametrize("lm", [tiny_llama], indirect=True)
class TestBeamContract(GrounderContract):
    @pytest.fixture(autouse=True)
    def _model(self, lm, titles):
        self.lm, self.titles = lm, titles

    def make(self):
        return grounder(self.lm, self.titles, settings=replace(SETTINGS, beams=40))
