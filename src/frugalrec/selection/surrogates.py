"""Scorers on a small sequence model in the LLM's place: influence, and the error it makes.

The surrogate trains on the whole train fold, the scored transitions included, in about the time in
which the LLM reads a few hundred prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import Examples
from frugalrec.engine import map_batches
from frugalrec.errors import ConfigError, DataError
from frugalrec.ledger import measure
from frugalrec.rng import generator
from frugalrec.runs import key_hash
from frugalrec.selection.base import Scorer
from frugalrec.selection.coverage import stratified
from frugalrec.types import DoubleArray, FloatArray, Selection

if TYPE_CHECKING:
    from frugalrec.recommenders.sequential import SequentialRecommender
    from frugalrec.selection.catalogue_losses import TransitionLoss
    from frugalrec.selection.curvature import Solution
    from frugalrec.selection.influence import Problem, Vector

Target = Literal["auto", "train", "valid"]
Curvature = Literal["none", "hessian", "gauss-newton"]
Progress = Callable[[int, int], None]


class SurrogateScorer(Scorer):
    """A scorer that looks through one or more trained sequence models.

    Args:
        surrogates: Trained models; the scores are averaged. None trains `n_surrogates` ones.
        model: Which model to train: `sasrec`, `gru4rec`, `caser`, `dros`, `bert4rec` or `dcrec`.
        options: Options of that model.
        n_surrogates: How many to train, from seeds `seed`, `seed + 1` ... Rankings by influence of two seeds
            agree at Spearman .86, means of three seeds at .94; averaging checkpoints of one gains nothing.
        valid: The validation fold: it stops the training, and may be the target of influence.
        seed: Seed of the first model.
        cache: A folder where the training keeps its checkpoints, so that a killed call does not train
            again what it had trained. Default: none.
        progress: Is told of (rows scored, rows in all), over all surrogates.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"seed", "valid", "cache", "progress"})

    def __init__(
        self,
        *,
        surrogates: Sequence[SequentialRecommender] | None = None,
        model: str = "sasrec",
        options: Mapping[str, Any] | None = None,
        n_surrogates: int = 1,
        valid: Dataset | None = None,
        seed: int = 0,
        cache: Path | str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.surrogates = surrogates
        self.model, self.options, self.n_surrogates = model, dict(options or {}), n_surrogates
        self.valid, self.seed, self.cache, self.progress = valid, seed, cache, progress

    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        with measure() as training:
            models = self._trained(dataset)
        with measure() as scoring:
            scores = self._mean(models, examples, dataset)
        self.costs_ = {"surrogate": training.usage, self.name: scoring.usage}
        return scores

    def _mean(
        self, models: Sequence[SequentialRecommender], examples: Examples, dataset: Dataset
    ) -> FloatArray:
        parts = []
        for number, surrogate in enumerate(models):

            def tell(done: int, total: int, number: int = number) -> None:
                if self.progress is not None:
                    self.progress(number * total + done, len(models) * total)

            one = self._score_through(surrogate, examples, dataset, tell)
            # Surrogates whose gradients are larger than others' would outvote them.
            spread = float(np.nanstd(one)) if len(models) > 1 else 1.0
            parts.append(one / spread if spread > 0 else one)
        return np.asarray(np.mean(parts, axis=0, dtype=np.float64), dtype=np.float32)

    def _score_through(
        self, surrogate: SequentialRecommender, examples: Examples, dataset: Dataset, progress: Progress
    ) -> FloatArray:
        raise NotImplementedError

    def _trained(self, train: Dataset) -> list[SequentialRecommender]:
        from frugalrec.recommenders import create
        from frugalrec.recommenders.sequential import SequentialRecommender

        if not isinstance(self.n_surrogates, int) or self.n_surrogates < 1:
            raise ConfigError(
                f"{self.name}: n_surrogates must be a whole number of at least 1, not {self.n_surrogates!r}."
            )
        models: list[Any] = list(self.surrogates or [])
        if not models:
            for number in range(self.n_surrogates):
                options = {"seed": self.seed + number, **self.options}
                model: Any = create(self.model, **options)
                if self.cache is not None and getattr(model, "checkpoint", "") is None:
                    model.checkpoint = Path(self.cache) / self._name(train, options)
                models.append(model.fit(train, self.valid))
        for model in models:
            if not isinstance(model, SequentialRecommender):
                raise ConfigError(
                    f"{self.name}: {model.name} is no sequence model, so it has no gradient by a sample; "
                    f"take sasrec, gru4rec, caser, dros, bert4rec or dcrec."
                )
            if not hasattr(model, "network_") or not model.history_:
                raise DataError(f"{self.name}: the surrogate {model.name} was never trained; call fit first.")
            if model.network_.items.num_embeddings != train.n_items:
                raise DataError(
                    f"{self.name}: the surrogate knows {model.network_.items.num_embeddings} items, the data "
                    f"have {train.n_items}; train it on the same split."
                )
        return models

    def _name(self, train: Dataset, options: Mapping[str, Any]) -> str:
        """Return a name for the checkpoint, with a hash of everything that decides the parameters."""
        data = [train.fingerprint, "" if self.valid is None else self.valid.fingerprint]
        key = key_hash({"model": self.model, "options": options, "data": data})
        return f"surrogate-{key[:16]}"


class Influence(SurrogateScorer):
    """Influence of a row on the surrogate's risk (Equation 11 of arXiv 2401.17197); helpful is positive.

    After scoring, `evidence_` holds one record a surrogate: the norm of the risk gradient, and with
    curvature the largest eigenvalue, damping, iterations, residual and the cosine of q and v.
    """

    name: ClassVar[str] = "influence"
    prefers: ClassVar[str] = "rows whose removal would raise the risk of a small sequence model"

    def __init__(
        self,
        *,
        loss: str = "softmax",
        parameters: str = ".*",
        target: Target = "auto",
        curvature: Curvature = "none",
        damping: float = 0.1,
        curvature_rows: int = 1024,
        **surrogate: Any,
    ) -> None:
        """Store the options.

        Args:
            loss: `softmax`, `expected-bce`, or `sampled-bce` (the published, noisy one).
            parameters: Regular expression of the surrogate's parameters that count; all by default.
            target: Whose risk: `train`, `valid` (not zero at the optimum, as the former is), or `auto`:
                `valid` where there is a validation fold.
            curvature: `none` takes q = v; else q solves the damped system (see curvature.py).
            damping: Share of the largest eigenvalue that is added to the curvature's diagonal.
            curvature_rows: Rows drawn to estimate the curvature.
            **surrogate: As in `SurrogateScorer`.
        """
        super().__init__(**surrogate)
        self.loss, self.parameters, self.target = loss, parameters, target
        self.curvature, self.damping, self.curvature_rows = curvature, damping, curvature_rows

    def _score(self, examples: Examples, dataset: Dataset) -> FloatArray:
        for option, known in (("target", get_args(Target)), ("curvature", get_args(Curvature))):
            if getattr(self, option) not in known:
                raise ConfigError(
                    f"influence: unknown {option} {getattr(self, option)!r}; choose {', '.join(known)}."
                )
        if self.target == "valid" and self.valid is None:
            raise ConfigError("influence: target 'valid' needs the validation fold; give valid=.")
        self.evidence_: list[dict[str, float]] = []
        return super()._score(examples, dataset)

    def _score_through(
        self, surrogate: SequentialRecommender, examples: Examples, dataset: Dataset, progress: Progress
    ) -> FloatArray:
        from frugalrec.selection.influence import Problem, risk_gradient, slopes
        from frugalrec.selection.surrogate_losses import transition_loss

        shape = {"parameters": self.parameters, "max_length": surrogate.max_length}
        problem = Problem(surrogate.network_, examples, **shape)  # type: ignore[arg-type]
        loss = transition_loss(self.loss, dataset, examples.users, self.seed)
        if self.valid is None or self.target == "train":
            v = risk_gradient(problem, loss)
        else:
            judged = next_events(dataset, self.valid, surrogate.max_length)
            risk = Problem(surrogate.network_, judged, **shape)  # type: ignore[arg-type]
            v = risk_gradient(risk, transition_loss(self.loss, dataset, judged.users, self.seed))
        q, evidence = self._direction(problem, loss, v)
        self.evidence_.append(evidence)
        return slopes(problem, loss, q, progress=progress)

    def _direction(
        self, problem: Problem, loss: TransitionLoss, v: Vector
    ) -> tuple[Vector, dict[str, float]]:
        from frugalrec.selection.curvature import gauss_newton_product, hessian_product, solve

        norm = float(sum(float(value.double().square().sum()) for value in v.values()) ** 0.5)
        if self.curvature == "none":
            return v, {"risk_gradient_norm": norm}
        rows = np.flatnonzero(np.diff(problem.examples.indptr) > 0)
        rng = generator(self.seed, "influence", "curvature")
        some = np.sort(rng.permutation(rows)[: self.curvature_rows])
        make = hessian_product if self.curvature == "hessian" else gauss_newton_product
        found: Solution = solve(make(problem, loss, some), v, damping=self.damping, seed=self.seed)
        evidence = {
            name: getattr(found, name)
            for name in ("largest_eigenvalue", "damping", "iterations", "residual", "cosine")
        }
        return found.q, {"risk_gradient_norm": norm, **evidence}


class EL2N(SurrogateScorer):
    """Norm of the error ``softmax - one-hot`` on a row (Paul et al., NeurIPS 2021): hard rows first.

    The paper averages ten networks early in training: `n_surrogates`, and few epochs in `options`.
    """

    name: ClassVar[str] = "el2n"
    prefers: ClassVar[str] = "rows on which a small sequence model errs"

    def _score_through(
        self, surrogate: SequentialRecommender, examples: Examples, dataset: Dataset, progress: Progress
    ) -> FloatArray:
        import torch

        from frugalrec.selection.influence import Batch, Problem

        problem = Problem(surrogate.network_, examples, max_length=surrogate.max_length)
        found = np.full(len(examples), np.nan, dtype=np.float32)

        @torch.no_grad()
        def error(batch: Batch) -> FloatArray:
            states, table = problem.at({}, batch)
            shares = torch.softmax(states @ table.T, dim=1)
            own = shares.gather(1, batch.asked.targets[:, None])[:, 0]
            squares = shares.square().sum(dim=1) - own.square() + (1 - own).square()
            norms: FloatArray = squares.sqrt().numpy()
            return norms

        for batch, norms in map_batches(error, problem.batches(256), rows=len(examples), progress=progress):
            found[batch.rows] = norms
        return found


class CCS(EL2N):
    """Coverage-centric selection (Zheng et al., ICLR 2023): strata of equal width over EL2N.

    The hardest share `prune_hard` is left out first, since it is rich in wrong labels.
    """

    name: ClassVar[str] = "ccs"
    prefers: ClassVar[str] = (
        "rows on which a small sequence model errs, drawn evenly over strata, the hardest left out"
    )

    def __init__(self, *, groups: int = 50, prune_hard: float = 0.1, **surrogate: Any) -> None:
        super().__init__(**surrogate)
        self.groups, self.prune_hard = groups, prune_hard

    def choose(self, scores: FloatArray, budget: int | float | str, *, seed: int = 0) -> Selection:
        """Return a stratified choice."""
        return chosen_by_strata(
            self.name,
            scores,
            scores,
            budget,
            seed,
            groups=self.groups,
            bins="width",
            prune_top=self.prune_hard,
        )


def chosen_by_strata(
    name: str,
    scores: FloatArray,
    ordered: FloatArray | DoubleArray,
    budget: int | float | str,
    seed: int,
    **options: Any,
) -> Selection:
    """Return the selection of `stratified` over `ordered`, carrying `scores`."""
    kept = stratified(ordered, budget, seed=seed, **options)
    return Selection(kept=kept, scores=scores, scorer=name, budget=int(kept.size), seed=seed)


def next_events(train: Dataset, valid: Dataset, max_length: int) -> Examples:
    """Return one example per user with both: the training history, then the first validation item."""
    from frugalrec.recommenders.batching import recent

    users = np.flatnonzero((train.lengths > 0) & (valid.lengths > 0)).astype(np.int32)
    if users.size == 0:
        raise DataError("no user has both training and validation interactions; take target 'train'.")
    indptr, items = recent(train, users, max_length)
    return Examples(
        users=users,
        indptr=indptr,
        items=items.astype(np.int32),
        values=None,
        targets=valid.items[valid.indptr[users]],
        labels=None,
    )
