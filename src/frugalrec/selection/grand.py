"""GraNd: how large a row's own loss gradient is while a surrogate is still learning.

Paul, Ganguli and Dziugaite, NeurIPS 2021 (arXiv 2107.07075): the expected norm of the gradient early in
training, over several networks. Rows with large norms move the parameters most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.selection.surrogates import Progress, SurrogateScorer
from frugalrec.types import FloatArray

if TYPE_CHECKING:
    from frugalrec.recommenders.sequential import SequentialRecommender


class GraNd(SurrogateScorer):
    """Norm of the gradient of a row's softmax loss, over all parameters of the surrogate; exact.

    The paper averages ten networks early in training: `n_surrogates`, and few epochs in `options`. Rows
    without a history are undefined.
    """

    name: ClassVar[str] = "grand"
    prefers: ClassVar[str] = "rows that would move a small sequence model most"

    def _score_through(
        self, surrogate: SequentialRecommender, examples: Examples, dataset: Dataset, progress: Progress
    ) -> FloatArray:
        from frugalrec.selection.influence import Problem
        from frugalrec.selection.row_gradients import row_gradient_norms

        problem = Problem(surrogate.network_, examples, max_length=surrogate.max_length)
        return row_gradient_norms(problem, progress=progress)
