"""The published label of weak users on MovieLens-100k: a random scorer finds as many, a random order heals.

Kaur and Shah (2024) call a user weak who is less active than the mean and has a per-user AUC below one half,
where the AUC compares the order of the user's ratings in the test fold. Here that phase is run again (ratings
of each user cut at random 80/10/10) for a random scorer, popularity, ItemKNN and BPR, next to what they
published; then the proper AUC, held-out against unseen items, for the same models. The clock compares the
published metric in arrays with a loop over users and pairs.

    python benchmarks/weak_users.py             # 3 seeds
    python benchmarks/weak_users.py --quick     # 1 seed
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from frugalrec.allocation.published import (
    RatedScores,
    label,
    published_change,
    rated_scores,
    rating_order_auc,
)
from frugalrec.allocation.stability import stability
from frugalrec.allocation.weakness import Threshold, weak_users
from frugalrec.data.dataset import Dataset
from frugalrec.data.readers import read
from frugalrec.data.splits import Split
from frugalrec.evaluation.evaluate import fold_ranks
from frugalrec.evaluation.metrics import parse_metric
from frugalrec.recommenders import create
from frugalrec.rng import generator

DATA = Path(os.environ.get("FRUGALREC_DATA", Path(__file__).parent / "../../shared/data"))
MODELS: dict[str, dict[str, Any]] = {
    "random": {},
    "popularity": {},
    "item-knn": {"k": 100},
    "bpr": {"factors": 64, "iterations": 100},
}
EXPECTED = {"auc": 0.457, "weak": 323.0, "empty": 78.0}
"""What an independent re-run of the published phase gave for random scores, a mean of 3 seeds."""
TOLERANCE = {"auc": 0.01, "weak": 25.0, "empty": 16.0}
"""Sampling error of such a mean: standard deviations between seeds are about .010, 13 and 8."""
RANDOM_SEEDS = 20
PUBLISHED = {"item-knn": (0.456, 340), "bpr": (0.516, 280)}
"""Mean AUC (their Table 2) and weak users (read off their Figure 4)."""
ROWS = (
    ("mean AUC, all users", "auc", "{:.3f}"),
    ("weak users", "weak", "{:.0f}"),
    ("  of these without two different ratings", "empty", "{:.0f}"),
    ("  weak if one half counts as weak (Eq. 5)", "weak_at_most", "{:.0f}"),
    ("mean AUC of weak users", "auc_weak", "{:.3f}"),
    ("P(weak on test | weak on valid)", "conditional", "{:.2f}"),
    ("P(weak on test)", "base_rate", "{:.2f}"),
    ("correlation valid-test, inactive", "correlation", "{:.2f}"),
    ("after a random order for weak users: AUC", "auc_control", "{:.3f}"),
    ("  weak users left", "control", "{:.0f}"),
    ("  change of weak users", "healed", "{:+.0%}"),
)
PROPER = (
    ("mean AUC, all users", "auc", "{:.3f}"),
    ("mean AUC, inactive", "auc_inactive", "{:.3f}"),
    ("mean AUC, active", "auc_active", "{:.3f}"),
    ("NDCG@10, inactive", "ndcg_inactive", "{:.3f}"),
    ("NDCG@10, active", "ndcg_active", "{:.3f}"),
    ("users below 0.5", "below_half", "{:.0f}"),
    ("undefined users", "undefined", "{:.0f}"),
    ("correlation valid-test, all", "correlation_all", "{:.2f}"),
    ("correlation valid-test, inactive", "correlation", "{:.2f}"),
    ("P(low on test | low on valid)", "conditional", "{:.2f}"),
    ("P(low on test)", "base_rate", "{:.2f}"),
)


def random_folds(dataset: Dataset, seed: int) -> Split:
    """Cut each user's ratings at random, 80/10/10; held-out parts are rounded down, at least 1."""
    folds = np.zeros(dataset.n, dtype=np.int8)
    rng = generator(seed, "weak-users", "folds")
    for user in range(dataset.n_users):
        start, stop = dataset.indptr[user : user + 2]
        order = start + rng.permutation(stop - start)
        held = max(int(0.1 * (stop - start)), 1)
        folds[order[:held]] = 1
        folds[order[held : 2 * held]] = 2
    train, valid, test = (dataset.where(folds == fold) for fold in range(3))
    return Split(method="random 80/10/10", train=train, valid=valid, test=test)


def published_figures(
    rated: dict[str, RatedScores], lengths: Any, n_items: int, seed: int
) -> dict[str, float]:
    labels = {fold: label(table, lengths, n_items, fold, "below") for fold, table in rated.items()}
    test = labels["test"]
    known = [
        replace(one, performance=np.where(one.undefined, np.nan, one.performance)) for one in labels.values()
    ]
    report = stability(labels["valid"], test, seed=seed)
    change = published_change(
        rated["test"], rated["test"].scores, lengths, n_items, rule="below", draws=10, seed=seed
    )
    return {
        "auc": float(test.performance.mean()),
        "weak": float(test.weak.sum()),
        "empty": float((test.weak & test.undefined).sum()),
        "weak_at_most": float(label(rated["test"], lengths, n_items).weak.sum()),
        "auc_weak": float(test.performance[test.weak].mean()),
        "conditional": report.conditional,
        "base_rate": report.base_rate,
        "lift": report.lift,
        "correlation": report.correlation,
        "correlation_defined": stability(*known, seed=seed).correlation,
        "auc_control": change.auc_control,
        "control": change.control,
        "healed": change.control / change.before - 1,
    }


def proper_figures(score: Any, split: Split, seed: int) -> dict[str, float]:
    cuts: dict[str, Any] = {"t_s": Threshold.mean(), "t_p": Threshold.quantile(0.2), "kappa": 0.0}
    lengths = split.train.lengths
    ranks = {fold: fold_ranks(score, split, fold) for fold in ("valid", "test")}
    valid, test = (weak_users(ranks[fold], lengths, fold=fold, **cuts) for fold in ("valid", "test"))
    ndcg = parse_metric("ndcg@10")(ranks["test"])
    everybody = replace(valid, inactive=np.ones_like(valid.inactive))
    report = stability(valid, test, seed=seed)

    def mean(values: Any, mask: Any) -> float:
        return float(np.nanmean(values[mask]))

    return {
        "auc": mean(test.performance, slice(None)),
        "auc_inactive": mean(test.performance, test.inactive),
        "auc_active": mean(test.performance, ~test.inactive),
        "ndcg_inactive": mean(ndcg, test.inactive),
        "ndcg_active": mean(ndcg, ~test.inactive),
        "below_half": float((test.performance < 0.5).sum()),
        "undefined": float(test.n_undefined),
        "correlation_all": stability(everybody, test, seed=seed).correlation,
        "correlation": report.correlation,
        "conditional": report.conditional,
        "base_rate": report.base_rate,
        "lift": report.lift,
    }


def naive(rated: RatedScores) -> np.ndarray:
    """Compare every pair of every user in plain loops."""
    rows: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row, rating, score in zip(
        rated.rows.tolist(), rated.ratings.tolist(), rated.scores.tolist(), strict=True
    ):
        rows[row].append((rating, score))
    values = np.zeros(rated.users.size)
    for row, own in rows.items():
        right = pairs = 0.0
        for rating, score in own:
            for other_rating, other in own:
                if rating < other_rating:
                    pairs += 1
                    right += (score < other) + 0.5 * (score == other)
        values[row] = right / pairs if pairs else 0.0
    return values


def best_of(repeats: int, work: Any) -> tuple[Any, float]:
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        spent.append(time.perf_counter() - start)
    return result, min(spent)


def run_seed(dataset: Dataset, seed: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, RatedScores]]:
    """Return the published figures, the proper ones and the gathered scores of every model."""
    split = random_folds(dataset, seed)
    users = np.arange(dataset.n_users, dtype=np.int32)
    published, proper, tables = {}, {}, {}
    for name, options in MODELS.items():
        seeded = {**options, "seed": seed} if name in ("random", "bpr") else options
        model = create(name, **seeded).fit(split.train)

        def score(codes: Any, model: Any = model) -> Any:
            return model.score(codes)

        rated = {fold: rated_scores(score, users, split.targets(fold)) for fold in ("valid", "test")}
        published[name] = published_figures(rated, dataset.lengths, dataset.n_items, seed)
        proper[name] = proper_figures(score, split, seed)
        tables[name] = rated["test"]
    return published, proper, tables


def average(runs: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        name: {figure: float(np.mean([run[name][figure] for run in runs])) for figure in runs[0][name]}
        for name in runs[0]
    }


def show(title: str, rows: tuple[tuple[str, str, str], ...], means: dict[str, dict[str, float]]) -> None:
    print(f"\n{title}")
    print(f"{'':42s}" + "".join(f"{name:>12s}" for name in means))
    for words, figure, pattern in rows:
        print(f"{words:42s}" + "".join(f"{pattern.format(means[name][figure]):>12s}" for name in means))


def random_scorer(dataset: Dataset) -> dict[str, list[float]]:
    """Return the published figures of random scores, one entry a seed: many seeds cost little."""
    users = np.arange(dataset.n_users, dtype=np.int32)
    found: dict[str, list[float]] = {figure: [] for figure in EXPECTED}
    for seed in range(RANDOM_SEEDS):
        split = random_folds(dataset, seed)
        model = create("random", seed=seed).fit(split.train)
        rated = rated_scores(model.score, users, split.test)
        test = label(rated, dataset.lengths, dataset.n_items, "test", "below")
        found["auc"].append(float(test.performance.mean()))
        found["weak"].append(float(test.weak.sum()))
        found["empty"].append(float((test.weak & test.undefined).sum()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if not (options.data / "ml-100k").is_dir():
        print(json.dumps({"benchmark": "weak_users", "skipped": f"no ml-100k in {options.data}"}))
        return
    dataset = read(options.data / "ml-100k")
    seeds = range(1 if options.quick else options.seeds)
    results = [run_seed(dataset, seed) for seed in seeds]
    published, proper = ([result[i] for result in results] for i in range(2))
    means, proper_means = average(published), average(proper)
    show("As published (order of a user's ratings, test fold; weak: inactive and below 0.5)", ROWS, means)
    print("published: " + ", ".join(f"{n} AUC {a}, {w} weak users" for n, (a, w) in PUBLISHED.items()))
    show(
        "Proper AUC (held-out against unseen items, not shrunk; low: lowest fifth, among inactive users)",
        PROPER,
        proper_means,
    )
    random = random_scorer(dataset)
    known = {figure: (float(np.mean(v)), float(np.std(v, ddof=1))) for figure, v in random.items()}
    close = all(abs(known[figure][0] - EXPECTED[figure]) <= TOLERANCE[figure] for figure in EXPECTED)
    print(f"\nrandom scores, {RANDOM_SEEDS} seeds (expected {EXPECTED}):")
    for figure, (mean, spread) in known.items():
        print(f"  {figure}: {mean:.3f}, standard deviation between seeds {spread:.3f}")
    table = results[0][2]["bpr"]
    fast, ours_s = best_of(5, lambda: rating_order_auc(table))
    slow, baseline_s = best_of(2, lambda: naive(table))
    largest = float(np.abs(fast - slow).max())
    print()
    print(
        json.dumps(
            {
                "benchmark": "weak_users",
                "ours_s": ours_s,
                "baseline_s": baseline_s,
                "ratio": baseline_s / ours_s,
                "equal": close and largest < 1e-12,
                "largest_gap_to_loop": largest,
                "random_auc": known["auc"][0],
                "random_weak": known["weak"][0],
                "random_weak_without_information": known["empty"][0],
                "random_seeds": RANDOM_SEEDS,
                "expected": EXPECTED,
                "published_metric": means,
                "proper_metric": proper_means,
                "n_users": dataset.n_users,
                "n_items": dataset.n_items,
                "seeds": list(seeds),
                "machine": platform.machine(),
                "versions": {"python": platform.python_version(), "numpy": version("numpy")},
            }
        )
    )


if __name__ == "__main__":
    main()
