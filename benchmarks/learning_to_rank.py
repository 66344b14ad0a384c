"""Cheap rivals of an LLM on MovieLens-100k: EASE's first 20 re-ranked by LambdaRank, and a second model.

The trees learn on validation users' lists of models that saw the training fold alone; the test lists come
from models fitted anew on training and validation. All arms order the same 20 candidates, and differences are
paired over test users. The clock compares fitting and applying the trees with fitting and applying EASE.
Equal means: users and candidates in another order give the same scores, and so does the saved model.

    python benchmarks/learning_to_rank.py             # time split and leave-last-out
    python benchmarks/learning_to_rank.py --quick     # time split, half as many trees
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from frugalrec.data.dataset import Dataset
from frugalrec.data.readers import read
from frugalrec.data.splits import Fold, Split, split
from frugalrec.evaluation.compare import difference
from frugalrec.evaluation.controls import headroom, popularity_rerank, random_permutation
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.recommenders import create
from frugalrec.recommenders.candidate_features import CandidateFeatures, candidate_features, scores_of
from frugalrec.recommenders.learning_to_rank import LambdaRank, left_out
from frugalrec.recommenders.rank_model import RankModel
from frugalrec.recommenders.second_opinions import reordered, second_opinion
from frugalrec.types import Ranking

DATA = Path(os.environ.get("FRUGALREC_DATA", Path(__file__).parent / "../../shared/data"))
FIRST, SECOND = "ease", "item-knn"
OTHERS: dict[str, dict[str, Any]] = {SECOND: {"k": 100}, "als": {"factors": 32}, "markov": {}}
M, METRIC = 20, "ndcg@10"


def lists(part: Split, fold: Fold, seed: int) -> tuple[CandidateFeatures, Ranking, float]:
    """Return the candidates of a fold with their features, the second model's lists, and EASE's seconds."""
    known, users = part.history(fold), part.users(fold)
    start = time.perf_counter()
    first = create(FIRST).fit(known)
    ranking = first.recommend(users, M)
    ease_s = time.perf_counter() - start
    models = {name: make(name, options, seed).fit(known) for name, options in OTHERS.items()}
    scores = {name: scores_of(model, ranking) for name, model in models.items()}
    return candidate_features(ranking, known, scores), models[SECOND].recommend(users, M), ease_s


def make(name: str, options: dict[str, Any], seed: int) -> Any:
    return create(name, **options, **({"seed": seed} if name == "als" else {}))


def shuffled(features: CandidateFeatures, seed: int) -> tuple[CandidateFeatures, np.ndarray, np.ndarray]:
    """Return the same features with users and candidates in another order, and the orders."""
    rng = np.random.default_rng(seed)
    n, m = features.ranking.items.shape
    users, columns = rng.permutation(n), rng.permuted(np.tile(np.arange(m), (n, 1)), axis=1)
    values = np.take_along_axis(features.values[users], columns[:, :, None], axis=1)
    items = np.take_along_axis(features.ranking.items[users], columns, axis=1)
    ranking = Ranking(users=features.ranking.users[users], items=items, scores=features.ranking.scores[users])
    return replace(features, values=values, ranking=ranking), users, columns


def is_equal(options: LambdaRank, model: RankModel, features: CandidateFeatures, targets: Dataset) -> bool:
    """Return whether neither order nor a file changes a score."""
    scores = model.score_lists(features)
    other, users, columns = shuffled(features, 1)
    again = options.fit_lists(other, targets).score_lists(other)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.json")
        loaded = RankModel.load(Path(folder) / "model.json").score_lists(features)
    same = np.array_equal(again, np.take_along_axis(scores[users], columns, axis=1), equal_nan=True)
    return same and np.array_equal(loaded, scores, equal_nan=True)


def run(dataset: Dataset, method: Any, options: LambdaRank) -> dict[str, Any]:
    part = split(dataset, method)
    valid, _, _ = lists(part, "valid", options.seed)
    test, second, ease_s = lists(part, "test", options.seed)
    start = time.perf_counter()
    model = options.fit_lists(valid, part.targets("valid"))
    fitted = time.perf_counter()
    scores = model.score_lists(test)
    applied = time.perf_counter()
    first, known, targets = test.ranking, part.history("test"), part.targets("test")
    everyone = np.ones(first.users.size, dtype=bool)
    arms = {
        FIRST: first,
        "lambda-rank": reordered(first, scores),
        "random order": random_permutation(first, M, options.seed),
        "popularity order": popularity_rerank(first, known.item_counts, M),
        f"{SECOND} for all": second_opinion(first, second, everyone),
    }
    found = {
        name: evaluate_ranking(name, ranking, targets, [METRIC], seen=known) for name, ranking in arms.items()
    }
    guess = {
        name: evaluate_ranking(name, ranking, part.targets("valid"), [METRIC], seen=part.history("valid"))
        for name, ranking in {
            FIRST: valid.ranking,
            "lambda-rank": reordered(valid.ranking, left_out(model, valid)),
        }.items()
    }
    ceiling = headroom(first, targets, M, METRIC, seen=known).details
    n, n_valid = first.users.size, valid.ranking.users.size
    print(f"\n{dataset.name}, {method} split: {n} test users, {n_valid} validation users")
    print(f"  {model.trees} trees of at most {options.trees}; the best order has {ceiling['ceiling']:.4f}")
    rows = {}
    for name, evaluation in found.items():
        gap = difference(evaluation, found[FIRST], METRIC, seed=options.seed)
        rows[name] = {"ndcg": evaluation.mean(METRIC), "difference": [gap.mean, gap.low, gap.high]}
        print(f"  {name:20} {METRIC} {gap.mean_a:.4f}   {gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})")
    gap = difference(guess["lambda-rank"], guess[FIRST], METRIC, seed=options.seed)
    print(f"  on validation, users left out: {gap.mean:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})")
    shares = sorted(model.importance.items(), key=lambda pair: -pair[1])[:5]
    print("  what splits gained: " + ", ".join(f"{name} {share:.0%}" for name, share in shares if share))
    return {
        "users": int(first.users.size),
        "trees": model.trees,
        "arms": rows,
        "left_out": [gap.mean, gap.low, gap.high],
        "ceiling": ceiling["ceiling"],
        "fit_s": fitted - start,
        "apply_s": applied - fitted,
        "ease_s": ease_s,
        "equal": is_equal(options, model, valid, part.targets("valid")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not (options.data / "ml-100k").is_dir():
        print(json.dumps({"benchmark": "learning_to_rank", "skipped": f"no ml-100k in {options.data}"}))
        return
    dataset = read(options.data / "ml-100k")
    rank = LambdaRank(trees=100 if options.quick else 200, seed=options.seed)
    methods = ("time",) if options.quick else ("time", "leave-last-out")
    results = {method: run(dataset, method, rank) for method in methods}
    ours = sum(one["fit_s"] + one["apply_s"] for one in results.values())
    base = sum(one["ease_s"] for one in results.values())
    print(
        json.dumps(
            {
                "benchmark": "learning_to_rank",
                "ours_s": ours,
                "baseline_s": base,
                "ratio": base / ours,
                "equal": all(one["equal"] for one in results.values()),
                "results": results,
                "seed": options.seed,
                "m": M,
                "lightgbm": version("lightgbm"),
                "numpy": version("numpy"),
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
