"""Quality of SASRec with its default options on Amazon Beauty: mean test HR@10 and NDCG@10 of three seeds.

Leave-last-out, item codes at random, full ranking over 12,101 items; the history at test time is train
and validation. The epoch is chosen on validation. In the main figures, as in `recommend`, a user's
history is left out of the ranking (no user of this data set buys an item twice); the ones with the
history competing stand beside them. A killed run continues: every seed keeps its checkpoint in `runs/`.

    python benchmarks/sasrec_beauty.py
    python benchmarks/sasrec_beauty.py --quick      # 2,000 users, two epochs, one seed
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from frugalrec.data.readers import read
from frugalrec.data.splits import Split, split
from frugalrec.recommenders.sequential import SASRec

ROOT = Path(__file__).resolve().parent.parent
K = 10
GOAL = {"hr": 0.090, "ndcg": 0.054}
PUBLISHED = {"hr": 0.0986, "ndcg": 0.0597}  # SASRec, cross-entropy, 64 factors


def folds(quick: bool) -> Split:
    data = Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data"))
    whole = read(data / "amazon-beauty", name="amazon-beauty")
    if quick:
        chosen = np.random.default_rng(0).permutation(whole.n_users)[:2_000]
        whole = whole.where(np.isin(whole.rows, chosen))
    return split(whole, "leave-last-out")


def test_metrics(model: SASRec, parts: Split) -> dict[str, float]:
    """Return HR@10 and NDCG@10 of the one test item a user, history out of the ranking and in it."""
    users, found = parts.users("test"), {}
    target = parts.test.items[parts.test.indptr[users]]
    for seen, suffix in (("exclude", ""), ("include", "_with_history")):
        lists = model.recommend(users, K, seen=seen, histories=parts.history("test"))
        hits = lists.items == target[:, None]
        found[f"hr{suffix}"] = float(hits.any(axis=1).mean())
        found[f"ndcg{suffix}"] = float((hits / np.log2(np.arange(2, K + 2))).sum(axis=1).mean())
    return found


def run_seed(parts: Split, seed: int, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    cpu = time.process_time()
    model = SASRec(seed=seed, checkpoint=folder / f"seed-{seed}", **options)
    model.fit(parts.train, parts.valid)
    return {
        "seed": seed,
        **test_metrics(model, parts),
        "valid_ndcg": max(one["valid_ndcg"] for one in model.history_ if "valid_ndcg" in one),
        "epochs": len(model.history_),
        "best_epoch": model.best_epoch_,
        "train_s": round(sum(one["seconds"] for one in model.history_), 1),
        "cpu_s": round(time.process_time() - cpu, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "sasrec-beauty")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON of SASRec options")
    arguments = parser.parse_args()
    parts = folds(arguments.quick)
    options = {"threads": arguments.threads, **arguments.options}
    seeds = arguments.seeds
    if arguments.quick:
        options, seeds = {"epochs": 2, **options}, seeds[:1]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if arguments.quick else arguments.folder
        rows = []
        for seed in seeds:
            rows.append(run_seed(parts, seed, folder, options))
            print(json.dumps(rows[-1]), flush=True)
    means = {
        key: round(float(np.mean([row[key] for row in rows])), 5)
        for key in (
            "hr",
            "ndcg",
            "hr_with_history",
            "ndcg_with_history",
            "valid_ndcg",
            "best_epoch",
            "train_s",
        )
    }
    print(
        json.dumps(
            {
                "benchmark": "sasrec: quality on Amazon Beauty",
                "ours_s": means["train_s"],
                "baseline_s": None,
                "ratio": None,
                "equal": None if arguments.quick else all(means[key] >= GOAL[key] for key in GOAL),
                "mean": means,
                "goal": GOAL,
                "published": PUBLISHED,
                "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "users": int(parts.users("test").size),
                "items": parts.train.n_items,
                "seeds": seeds,
                "threads": arguments.threads,
                "options": arguments.options,
                "versions": {"python": platform.python_version(), "torch": version("torch")},
            }
        )
    )


if __name__ == "__main__":
    main()
