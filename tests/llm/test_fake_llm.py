import numpy as np
import pytest

from frugalrec.llm.base import PromptGroup
from frugalrec.testing.fake_llm import FakeLLM, echo
from frugalrec.testing.llm_contract import LanguageModelContract


class TestFakeContract(LanguageModelContract):
    def make(self):
        return FakeLLM(seed=3)


def test_contract_finds_a_model_that_looks_at_its_neighbours():
    class Leaky(FakeLLM):
        def choose(self, groups, answers):
            scores, usage = super().choose(groups, answers)
            return [s - 0.01 * len(s) for s in scores], usage

    class Check(LanguageModelContract):
        def make(self):
            return Leaky()

    with pytest.raises(AssertionError):
        Check().test_choose_does_not_depend_on_the_other_prompts()


def test_words_are_counted_by_hand():
    # "a b c" is shared by "a b c d" and "a b c e f": 3 + 1 + 2 computed, 3 saved.
    group = PromptGroup(prefix="a b c", suffixes=(" d", " e f"))
    _, usage = FakeLLM().choose([group], [" Yes", " No"])
    assert (usage.tokens_in, usage.tokens_cached, usage.llm_calls) == (6, 3, 2)


def test_oracle_and_echo():
    lm = FakeLLM(reply=echo, score=lambda prompt, answer: float(np.log(3)) if answer == " Yes" else 0.0)
    (scores,), _ = lm.choose([PromptGroup(prefix="p", suffixes=("",))], [" Yes", " No"])
    # Weights 3, 1 and 1 for everything else: probabilities 3/5 and 1/5.
    np.testing.assert_allclose(np.exp(scores[0]), [0.6, 0.2], atol=1e-6)
    completions, usage = lm.generate(["first line\nthe last one"])
    assert completions[0].text == "the last one" and usage.tokens_out == 3
    assert lm.calls == ["p", "first line\nthe last one"]


def test_seed_changes_answers():
    group = PromptGroup(prefix="p", suffixes=("q",))
    a, b, again = (FakeLLM(seed=s).choose([group], [" Yes", " No"])[0][0] for s in (0, 1, 0))
    assert (a == again).all() and (a != b).any()
