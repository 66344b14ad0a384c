"""The contract of language models: inherit it in a test class to check an own `LanguageModel`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from frugalrec.errors import ModelError
from frugalrec.llm.base import LanguageModel, PromptGroup
from frugalrec.types import FloatArray

PREFIX = 'Films watched: "Alien (1979)", "Heat (1995)".\nNext film:'
SUFFIXES = (' "The Matrix (1999)"? Answer:', ' "Bambi"? Answer:', ' "Blade Runner (1982)", again? Answer:')
OTHER = PromptGroup(prefix="The quick brown fox", suffixes=(" jumps over the lazy dog. Answer:",))
CONTINUATIONS = (" Heat (1995)", " the lazy dog jumps", " 7")


class LanguageModelContract:
    """What every `LanguageModel` must do; a subclass writes `make`, which pytest calls per check.

    >>> from frugalrec.testing.fake_llm import FakeLLM
    >>> class TestMine(LanguageModelContract):
    ...     def make(self) -> LanguageModel:
    ...         return FakeLLM()
    """

    answers: Sequence[str] = (" Yes", " No")
    tolerance = 1e-4
    """Allowed difference of log-probabilities between ways of asking the same; more for bfloat16."""

    def make(self) -> LanguageModel:
        """Return a fresh model, or the same one again."""
        raise NotImplementedError

    def test_choose_gives_log_probabilities(self) -> None:
        """One row a suffix, one column an answer; together the answers have at most probability 1."""
        scores, usage = self.make().choose([self._group(), OTHER], self.answers)
        assert [s.shape for s in scores] == [(3, len(self.answers)), (1, len(self.answers))]
        assert all(s.dtype == np.float32 and (s <= 0).all() for s in scores)
        assert all((np.exp(s).sum(axis=1) <= 1 + 1e-3).all() for s in scores)
        assert usage.llm_calls == 4 and usage.tokens_in > 0 and usage.tokens_out == 0

    def test_choose_does_not_depend_on_where_the_prefix_ends(self) -> None:
        """The same whole prompts, split elsewhere, give the same numbers."""
        lm = self.make()
        whole = PromptGroup(prefix="", suffixes=tuple(PREFIX + s for s in SUFFIXES))
        early = PromptGroup(prefix=PREFIX[:9], suffixes=tuple(PREFIX[9:] + s for s in SUFFIXES))
        expected = lm.choose([self._group()], self.answers)[0][0]
        for group in (whole, early):
            self._close(lm.choose([group], self.answers)[0][0], expected)

    def test_choose_does_not_depend_on_the_other_prompts(self) -> None:
        """Alone, together, or in another order: the same numbers."""
        lm = self.make()
        together = lm.choose([self._group(), OTHER], self.answers)[0]
        swapped = lm.choose([OTHER, self._group()], self.answers)[0]
        reversed_suffixes = PromptGroup(prefix=PREFIX, suffixes=SUFFIXES[::-1])
        self._close(swapped[1], together[0])
        self._close(swapped[0], together[1])
        self._close(lm.choose([reversed_suffixes], self.answers)[0][0], together[0][::-1])
        for row, suffix in enumerate(SUFFIXES):
            alone = lm.choose([PromptGroup(prefix=PREFIX, suffixes=(suffix,))], self.answers)[0][0]
            self._close(alone[0], together[0][row])

    def test_choose_does_not_depend_on_the_other_answers(self) -> None:
        """Answers in another order give the same columns in that order."""
        lm = self.make()
        forward = lm.choose([self._group()], self.answers)[0][0]
        backward = lm.choose([self._group()], self.answers[::-1])[0][0]
        self._close(backward, forward[:, ::-1])

    def test_choose_accounts_for_every_prompt_token(self) -> None:
        """Computed and cached tokens together are those of the prompts one by one."""
        lm = self.make()
        _, usage = lm.choose([self._group()], self.answers)
        alone = sum(
            lm.choose([PromptGroup(prefix=PREFIX, suffixes=(s,))], self.answers)[1].tokens_in
            for s in SUFFIXES
        )
        assert usage.tokens_in + usage.tokens_cached == alone

    def test_loglikelihood_gives_one_number_a_continuation(self) -> None:
        """Sums of log-probabilities: never above 0, and 0 for an empty continuation."""
        lm = self.make()
        scores, usage = lm.loglikelihood([PREFIX, OTHER.prefix], [CONTINUATIONS, ["", CONTINUATIONS[0]]])
        assert [s.shape for s in scores] == [(3,), (2,)]
        assert all(s.dtype == np.float32 and (s <= 0).all() for s in scores)
        assert scores[1][0] == 0.0 and usage.tokens_in > 0

    def test_loglikelihood_does_not_depend_on_the_others(self) -> None:
        """Alone, together, or in another order: the same numbers."""
        lm = self.make()
        together = lm.loglikelihood([PREFIX, OTHER.prefix], [CONTINUATIONS, CONTINUATIONS])[0]
        swapped = lm.loglikelihood([OTHER.prefix, PREFIX], [CONTINUATIONS, CONTINUATIONS[::-1]])[0]
        self._close(swapped[1][::-1], together[0])
        self._close(swapped[0], together[1])
        for column, text in enumerate(CONTINUATIONS):
            self._close(lm.loglikelihood([PREFIX], [[text]])[0][0], together[0][column : column + 1])

    def test_generate_does_not_depend_on_the_batch(self) -> None:
        """Each prompt is completed as if it were alone."""
        lm = self.make()
        prompts = [PREFIX, OTHER.prefix, "Next film: "]
        together, usage = lm.generate(prompts, max_new_tokens=6)
        assert together == [lm.generate([p], max_new_tokens=6)[0][0] for p in prompts]
        assert usage.tokens_out == sum(c.tokens_out for c in together)
        assert usage.llm_calls == 3

    def test_generate_keeps_to_its_limit(self) -> None:
        """A smaller limit cuts the same text."""
        lm = self.make()
        (short,), _ = lm.generate([PREFIX], max_new_tokens=2)
        assert short.tokens_out <= 2
        self._refuses(lambda: lm.generate([PREFIX], max_new_tokens=0))

    def test_nothing_asked_costs_nothing(self) -> None:
        """Empty requests give empty results and no tokens."""
        lm = self.make()
        assert lm.choose([], self.answers)[0] == [] and lm.loglikelihood([], [])[0] == []
        assert lm.generate([])[0] == []
        (scores,), usage = lm.choose([PromptGroup(prefix=PREFIX, suffixes=())], self.answers)
        assert scores.shape == (0, len(self.answers)) and usage.tokens_in == 0

    def test_senseless_requests_are_refused(self) -> None:
        """No answers, equal answers, lists of different lengths: a ModelError, not a number."""
        lm = self.make()
        self._refuses(lambda: lm.choose([self._group()], []))
        self._refuses(lambda: lm.choose([self._group()], [" Yes", " Yes"]))
        self._refuses(lambda: lm.loglikelihood([PREFIX], []))

    def test_fingerprint_is_stable(self) -> None:
        """It enters cache keys: the same model has the same fingerprint."""
        lm = self.make()
        assert lm.fingerprint and lm.fingerprint == lm.fingerprint == self.make().fingerprint

    def _group(self) -> PromptGroup:
        return PromptGroup(prefix=PREFIX, suffixes=SUFFIXES)

    def _close(self, found: FloatArray, expected: FloatArray) -> None:
        np.testing.assert_allclose(found, expected, atol=self.tolerance, rtol=self.tolerance)

    @staticmethod
    def _refuses(request: Callable[[], object]) -> None:
        try:
            request()
        except ModelError:
            return
        raise AssertionError("a senseless request was not refused with a ModelError")
