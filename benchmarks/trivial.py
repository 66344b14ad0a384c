"""Trivial controls on published test protocols: what a rule without learning scores there.

Three protocols, rebuilt from the data files: the last item of each user on Amazon Beauty and Sports
(the protocol of POD and P5), and the publisher's test fold of DEALRec's Games data. The baseline is
the same arithmetic as plain Python loops over the files' own ids; the two must agree. The loops are
faster here: they know that these lists are short, while our evaluation ranks the whole catalogue.

    python benchmarks/trivial.py [--quick] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

import frugalrec
from frugalrec.data.dataset import Dataset
from frugalrec.data.readers import read
from frugalrec.data.splits import Split, split
from frugalrec.evaluation.metrics import parse_metric
from frugalrec.evaluation.ranks import Ranks, target_ranks
from frugalrec.recommenders.base import Recommender
from frugalrec.recommenders.baselines import MaxId, RecentPopularity
from frugalrec.recommenders.counting import Markov

ROOT = Path(__file__).resolve().parent.parent
LAST_ITEM = ("hit@1", "hit@5", "ndcg@5", "hit@10", "ndcg@10")
GAMES = ("recall@10", "recall@20", "ndcg@10", "ndcg@20")
PUBLISHED = {
    "beauty max+1": (0.0441, 0.0453, 0.0447, 0.0463, 0.0450),
    "beauty markov": (0.0263, 0.0504, 0.0389, 0.0616, 0.0426),
    "beauty max+1, markov": (0.0441, 0.0876, 0.0679, 0.1002, 0.0720),
    "sports max+1": (0.0414, 0.0428, 0.0421, 0.0433, 0.0423),
    "sports markov": (0.0133, 0.0267, 0.0204, 0.0331, 0.0224),
    "sports max+1, markov": (0.0414, 0.0641, 0.0539, 0.0715, 0.0563),
    "games recent popularity": (0.0223, 0.0397, 0.0139, 0.0193),
    "games popularity": (0.0068, 0.0104, 0.0039, 0.0050),
}
"""Figures of an earlier, separate study of the same files (not of this code); 4 decimals."""

Score = Callable[[np.ndarray], np.ndarray]
Figures = tuple[float, ...]


def listed(score: Score) -> Score:
    """Let only items with a score above 0 onto the list; the rest is -inf."""

    def only(users: np.ndarray) -> np.ndarray:
        scores = score(users)
        return np.where(scores > 0, scores, -np.inf)

    return only


def ranks_of(score: Score, parts: Split, *, mask: bool) -> Ranks:
    """Rank the test items by `score`; a test item that is not listed (-inf) is a miss."""
    users, history = parts.users("test"), parts.history("test")
    ranks = target_ranks(listed(score), users, parts.test, seen=history if mask else None)
    # Nobody's list holds the whole catalogue, so the last group of equals is what is not listed.
    last = ranks.better + ranks.tied + 1 == ranks.n_candidates[ranks.rows]
    return replace(ranks, better=np.where(last, np.inf, ranks.better), tied=np.where(last, 0.0, ranks.tied))


def figures(ranks: Ranks, names: tuple[str, ...]) -> Figures:
    """Return the mean of each metric; among ties its expected value over random orders."""
    return tuple(float(np.mean(parse_metric(name)(ranks))) for name in names)


def bounds(ranks: Ranks, names: tuple[str, ...]) -> tuple[Figures, Figures]:
    """Return the figures if every tie went against, and if every tie went for, the test item."""
    zeros = np.zeros_like(ranks.tied)
    worst = replace(ranks, better=ranks.better + ranks.tied, tied=zeros)
    return figures(worst, names), figures(replace(ranks, tied=zeros), names)


def in_order(score: Score, order: np.ndarray) -> Score:
    """Break the ties of whole-number scores by `order` (n_items,), lowest first."""
    tie = 1.0 - (order.argsort().argsort() + 1.0) / (order.size + 1.0)
    return lambda users: np.where((whole := score(users)) > 0, whole + tie, 0.0)


def max_id_then_markov(rule: Recommender, markov: Recommender, history: Dataset) -> Score:
    """Put the item numbered max + 1 first, and the Markov list behind it."""
    return lambda users: markov.score(users, history) + np.float32(1e6) * (rule.score(users, history) == 1.0)


def last_item(name: str, folder: Path, orders: int) -> dict[str, dict[str, object]]:
    """Score the three controls for each user's last item; ids are ours, random."""
    parts = split(read(folder), "leave-last-out")
    history = parts.history("test")
    rule = MaxId().fit(parts.train)
    markov = Markov(fallback=False).fit(parts.train)

    def rule_score(users: np.ndarray) -> np.ndarray:
        scores = rule.score(users, history)
        return np.where(scores >= 0.1, scores, 0.0)  # max + 1 to max + 10

    def markov_score(users: np.ndarray) -> np.ndarray:
        return markov.score(users, history)

    n_users = int(parts.users("test").size)
    rows: dict[str, dict[str, object]] = {
        f"{name} max+1": {
            "users": n_users,
            "ours": figures(ranks_of(rule_score, parts, mask=False), LAST_ITEM),
        }
    }
    both = max_id_then_markov(rule, markov, history)
    for label, score in ((f"{name} markov", markov_score), (f"{name} max+1, markov", both)):
        rows[label] = row = {
            "users": n_users,
            "definition": "train transitions, seen items left out, no fallback, ties in expectation",
        }
        ranks = ranks_of(score, parts, mask=True)
        row["ours"], (row["low"], row["high"]) = figures(ranks, LAST_ITEM), bounds(ranks, LAST_ITEM)
        if orders:
            row["seen_items_kept"] = figures(ranks_of(score, parts, mask=False), LAST_ITEM)
            shuffles = (in_order(score, shuffled(parts.train, seed)) for seed in range(orders))
            drawn = [figures(ranks_of(shuffle, parts, mask=True), LAST_ITEM) for shuffle in shuffles]
            row["orders_min"] = tuple(np.min(drawn, axis=0).tolist())
            row["orders_max"] = tuple(np.max(drawn, axis=0).tolist())
    return rows


def shuffled(data: Dataset, seed: int) -> np.ndarray:
    """Return a random order of the items."""
    return np.random.default_rng(seed).permutation(data.n_items)


def games(folder: Path, *, quick: bool) -> dict[str, dict[str, object]]:
    """Score popularity of the validation fold, and of train, for the publisher's test fold."""
    data = read(folder)
    parts = split(data, "given")
    history = parts.history("test")
    by_id = data.item_ids.astype(int)
    rows: dict[str, dict[str, object]] = {}
    recent = RecentPopularity(fold="valid").fit(history)
    popular = frugalrec.recommenders.create("popularity").fit(parts.train)
    for label, model in (("games recent popularity", recent), ("games popularity", popular)):

        def score(users: np.ndarray, model: Recommender = model) -> np.ndarray:
            return model.score(users, history)

        variants = {"ours": (in_order(score, by_id), False)}
        if not quick:
            variants |= {
                "ties_expected": (score, False),
                "ties_backwards": (in_order(score, -by_id), False),
                "seen_left_out": (score, True),
            }
        rows[label] = {
            "users": int(parts.users("test").size),
            "definition": "seen items kept, ties in order of the publisher's ids",
        } | {
            key: figures(ranks_of(variant, parts, mask=mask), GAMES)
            for key, (variant, mask) in variants.items()
        }
    return rows


def lines(path: Path) -> dict[int, list[int]]:
    """Read `user item item ...` lines."""
    with path.open() as file:
        return {int(row[0]): [int(item) for item in row[1:]] for row in map(str.split, file)}


def loop_last_item(path: Path) -> tuple[Figures, Figures]:
    """Return the figures of max+1..+10 and of Markov (ties expected), by plain loops."""
    sequences = list(lines(path).values())
    follows: dict[int, Counter[int]] = defaultdict(Counter)
    for items in sequences:
        for before, after in zip(items[:-2], items[1:-2], strict=False):
            follows[before][after] += 1
    rule, markov = [0.0] * 5, [0.0] * 5
    for items in sequences:
        history, target = items[:-1], items[-1]
        ahead = target - max(history)
        if 1 <= ahead <= 10:
            _add(rule, ahead, 1.0)
        options = {i: n for i, n in follows[history[-1]].items() if i not in history}
        if target in options:
            better = sum(n > options[target] for n in options.values())
            tied = sum(n == options[target] for n in options.values())
            for place in range(better + 1, better + tied + 1):
                _add(markov, place, 1 / tied)
    return tuple(x / len(sequences) for x in rule), tuple(x / len(sequences) for x in markov)


def _add(sums: list[float], place: int, weight: float) -> None:
    gain = weight / math.log2(place + 1)
    for position, (cut, amount) in enumerate(((1, weight), (5, weight), (5, gain), (10, weight), (10, gain))):
        if place <= cut:
            sums[position] += amount


def loop_games(folder: Path) -> Figures:
    """Return the figures of recent popularity with ties in order of the ids, by plain loops."""
    valid, test = lines(folder / "sequential_valid.txt"), lines(folder / "sequential_test.txt")
    counts = Counter(item for items in valid.values() for item in items)
    best = sorted(counts, key=lambda item: (-counts[item], item))[:20]
    sums, n = [0.0] * 4, 0
    for targets in map(set, test.values()):
        n += bool(targets)
        for position, k in enumerate((10, 20)):
            gains = [1 / math.log2(place + 2) for place, item in enumerate(best[:k]) if item in targets]
            ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(targets))))
            sums[position] += len(gains) / len(targets) if targets else 0.0
            sums[2 + position] += sum(gains) / ideal if targets else 0.0
    return tuple(value / n for value in sums)


def check(rows: dict[str, dict[str, object]], loops: dict[str, Figures]) -> dict[str, bool]:
    """Compare with the loops to rounding, and with the published figures to 4 decimals."""
    verdict = {f"{label} = loops": bool(np.allclose(rows[label]["ours"], loops[label])) for label in loops}
    for label, row in rows.items():
        published = PUBLISHED[label]
        if "low" in row:  # the published order of ties is not known
            low, high = np.round(row["low"], 4), np.round(row["high"], 4)
            verdict[f"{label} within ties"] = bool(((low <= published) & (published <= high)).all())
        else:
            verdict[f"{label} = published"] = [round(x, 4) for x in row["ours"]] == list(published)
    return verdict


def show(rows: dict[str, dict[str, object]]) -> None:
    """Print every row: published, ours, and what the order of ties can change."""
    for label, row in rows.items():
        names = GAMES if label.startswith("games") else LAST_ITEM
        print(f"\n{label:28}" + "".join(f"{name:>11}" for name in names))
        print(f"  {'published':26}" + "".join(f"{value:11.4f}" for value in PUBLISHED[label]))
        for key, values in row.items():
            if isinstance(values, tuple):
                print(f"  {key:26}" + "".join(f"{value:11.4f}" for value in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="no Sports, no random tie orders")
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data"))
    )
    args = parser.parse_args()
    sets = {"beauty": "amazon-beauty/Beauty.txt"}
    if not args.quick:
        sets["sports"] = "amazon-sports/Sports_and_Outdoors.txt"
    start = time.perf_counter()
    rows = games(args.data / "dealrec-games", quick=args.quick)
    for name, path in sets.items():
        rows |= last_item(name, (args.data / path).parent, 0 if args.quick else 5)
    ours_s = time.perf_counter() - start
    start = time.perf_counter()
    loops = {"games recent popularity": loop_games(args.data / "dealrec-games")}
    for name, path in sets.items():
        loops[f"{name} max+1"], loops[f"{name} markov"] = loop_last_item(args.data / path)
    baseline_s = time.perf_counter() - start
    show(rows)
    verdict = check(rows, loops)
    report = {
        "benchmark": "trivial",
        "ours_s": round(ours_s, 2),
        "baseline_s": round(baseline_s, 2),
        "ratio": round(baseline_s / ours_s, 3),
        "equal": all(verdict.values()),
        "checks": verdict,
        "rows": rows,
        "published": PUBLISHED,
        "seed": 0,
        "versions": {"frugalrec": frugalrec.__version__, "numpy": np.__version__},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
