"""Full-ranking evaluation of a factor model: ours against RecTools 0.19.0 and the bare matrix product.

Every side is a process of its own that reads the same files: factors, held-out items, seen items.
RecTools ranks with its fastest path for factors (`ImplicitRanker`, same number of threads), then
`calc_metrics`. The bare product is the chunked matrix multiplication alone, at the same chunk size
and threads as ours: what no evaluation can beat. Sides take turns, and each side's best time counts.
CPU seconds stand beside wall seconds, because the machine may be busy.

    python benchmarks/ranking.py             # 8,696 users x 17,332 items
    python benchmarks/ranking.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

K = 10
METRICS = ("recall", "precision", "hit", "ndcg", "mrr", "map")
DIMENSION = 64


def make(folder: Path, n_users: int, n_items: int, seed: int) -> None:
    """Write factors, about 2.3 held-out and 7 seen items a user, to `folder`."""
    rng = np.random.default_rng(seed)
    users = rng.standard_normal((n_users, DIMENSION), dtype=np.float32)
    items = rng.standard_normal((n_items, DIMENSION), dtype=np.float32)
    targets, seen = [], []
    for user in users:
        # Part of the held-out items come from the user's best 100, so that no metric is near 0.
        best = np.argpartition(items @ user, n_items - 100)[-100:]
        own = np.concatenate([rng.permutation(best)[: rng.poisson(0.8)], rng.permutation(n_items)[:40]])
        own = np.unique(own[: 1 + rng.poisson(1.27) + rng.poisson(7)].astype(np.int32))
        own = rng.permutation(own)
        cut = min(1 + rng.poisson(1.27), own.size)
        targets.append(own[:cut])
        seen.append(own[cut:])
    arrays = {"users": users, "items": items}
    for name, rows in (("targets", targets), ("seen", seen)):
        arrays[f"{name}_indptr"] = np.concatenate([[0], np.cumsum([row.size for row in rows])])
        arrays[f"{name}_items"] = np.concatenate(rows).astype(np.int32)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def load(folder: Path) -> dict[str, Any]:
    return {path.stem: np.load(path) for path in folder.glob("*.npy")}


def timed(work: Callable[[], Any], repeats: int) -> tuple[dict[str, list[float]], Any]:
    result: Any = None
    spent: dict[str, list[float]] = {"wall_s": [], "cpu_s": []}
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        spent["wall_s"].append(time.perf_counter() - wall)
        spent["cpu_s"].append(time.process_time() - cpu)
    return spent, result


def side_ours(data: dict[str, Any], threads: int, repeats: int, lists: int) -> dict[str, Any]:
    import polars as pl

    from frugalrec.data.dataset import Dataset
    from frugalrec.evaluation.metrics import parse_metric
    from frugalrec.evaluation.ranks import factor_scores, target_ranks

    n_users, n_items = data["users"].shape[0], data["items"].shape[0]

    def dataset(name: str) -> Dataset:
        return Dataset(
            name=name,
            indptr=data[f"{name}_indptr"],
            items=data[f"{name}_items"],
            values=None,
            times=None,
            folds=None,
            user_ids=np.arange(n_users).astype(np.str_),
            item_ids=np.arange(n_items).astype(np.str_),
            item_text=pl.DataFrame(),
        )

    targets, seen = dataset("targets"), dataset("seen")
    dialects = {"ndcg": ":all-k"}
    metrics = [parse_metric(f"{name}@{K}{dialects.get(name, '')}") for name in METRICS]

    def work() -> list[Any]:
        score = factor_scores(data["users"], data["items"])
        ranks = target_ranks(score, np.arange(n_users), targets, seen=seen, lists=lists, threads=threads)
        return [metric(ranks) for metric in metrics]

    seconds, values = timed(work, repeats)
    return {**seconds, "values": {m: v.tolist() for m, v in zip(METRICS, values, strict=True)}}


def side_lists(data: dict[str, Any], threads: int, repeats: int) -> dict[str, Any]:
    return side_ours(data, threads, repeats, lists=K)


def side_ranks(data: dict[str, Any], threads: int, repeats: int) -> dict[str, Any]:
    return side_ours(data, threads, repeats, lists=0)


def side_bare(data: dict[str, Any], threads: int, repeats: int) -> dict[str, Any]:
    from concurrent.futures import ThreadPoolExecutor

    from threadpoolctl import threadpool_limits

    from frugalrec.evaluation.ranks import BLOCK_BYTES, MAX_BATCH

    n_users, n_items = data["users"].shape[0], data["items"].shape[0]
    batch = max(1, min(MAX_BATCH, BLOCK_BYTES // (4 * n_items)))

    def product(start: int, items_t: Any) -> None:
        data["users"][start : start + batch] @ items_t

    def work() -> None:
        items_t = np.ascontiguousarray(data["items"].T)
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda start: product(start, items_t), range(0, n_users, batch)))

    return dict(timed(work, repeats)[0])


def side_rectools(data: dict[str, Any], threads: int, repeats: int) -> dict[str, Any]:
    import pandas as pd
    from rectools import Columns
    from rectools import metrics as peer
    from rectools.models.rank import Distance, ImplicitRanker
    from scipy import sparse

    n_users, n_items = data["users"].shape[0], data["items"].shape[0]
    ones = np.ones(data["seen_items"].size, dtype=np.float32)
    seen = sparse.csr_matrix((ones, data["seen_items"], data["seen_indptr"]), shape=(n_users, n_items))
    held_out = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(n_users), np.diff(data["targets_indptr"])),
            Columns.Item: data["targets_items"],
        }
    )
    kinds = dict(
        zip(
            METRICS,
            (peer.Recall, peer.Precision, peer.HitRate, peer.NDCG, peer.MRR, peer.MAP),
            strict=True,
        )
    )
    metrics = {name: kind(k=K) for name, kind in kinds.items()}

    def recommend() -> Any:
        ranker = ImplicitRanker(Distance.DOT, data["users"], data["items"], num_threads=threads)
        users, items, scores = ranker.rank(np.arange(n_users), k=K, filter_pairs_csr=seen)
        reco = pd.DataFrame({Columns.User: users, Columns.Item: items, Columns.Score: scores})
        reco[Columns.Rank] = reco.groupby(Columns.User, sort=False).cumcount() + 1
        return reco

    seconds, means = timed(lambda: peer.calc_metrics(metrics, recommend(), held_out), repeats)
    reco = recommend()
    values = {
        name: metric.calc_per_user(reco, held_out).reindex(range(n_users)).tolist()
        for name, metric in metrics.items()
    }
    return {**seconds, "values": values, "means": {k: float(v) for k, v in means.items()}}


SIDES = {"ranks": side_ranks, "lists": side_lists, "bare": side_bare, "rectools": side_rectools}


def run_side(name: str, folder: Path, threads: int, repeats: int) -> None:
    data = load(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = SIDES[name](data, threads, repeats)
    result["added_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps(result))


def call(name: str, folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    from peers import peer_python

    python = peer_python("rectools") if name == "rectools" else Path(sys.executable)
    # implicit wants BLAS on one thread, since it runs its own; ours sets the same by itself.
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
    arguments = [
        "--side",
        name,
        "--folder",
        str(folder),
        "--threads",
        str(threads),
        "--repeats",
        str(repeats),
    ]
    done = subprocess.run(
        [str(python), __file__, *arguments], env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 users x 6,000 items, fewer repeats")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.folder, options.threads, options.repeats)
        return
    n_users, n_items = (2_000, 6_000) if options.quick else (8_696, 17_332)
    rounds = 2 if options.quick else options.rounds
    best: dict[str, float] = {}
    cpu: dict[str, float] = {}
    last: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, n_users, n_items, options.seed)
        for _ in range(rounds):
            for side in SIDES:
                last[side] = call(side, folder, options.threads, options.repeats)
                best[side] = min([best.get(side, np.inf), *last[side]["wall_s"]])
                cpu[side] = min([cpu.get(side, np.inf), *last[side]["cpu_s"]])
    gaps = [
        np.abs(np.array(last[side]["values"][m]) - np.array(last["rectools"]["values"][m])).max()
        for side in ("ranks", "lists")
        for m in METRICS
    ]
    for side in SIDES:
        print(f"{side:9s} {best[side]:8.3f} s  {cpu[side]:8.3f} CPU s   +{last[side]['added_mib']:.0f} MiB")
    print(
        json.dumps(
            {
                "benchmark": "ranking",
                "ours_s": best["ranks"],
                "baseline_s": best["rectools"],
                "ratio": best["rectools"] / best["ranks"],
                "equal": bool(max(gaps) < 1e-9),
                "largest_gap": float(max(gaps)),
                "ours_with_lists_s": best["lists"],
                "ratio_with_lists": best["rectools"] / best["lists"],
                "bare_product_s": best["bare"],
                "ours_over_bare": best["ranks"] / best["bare"],
                "cpu_s": cpu,
                "cpu_ratio": cpu["rectools"] / cpu["ranks"],
                "cpu_ours_over_bare": cpu["ranks"] / cpu["bare"],
                "added_mib": {side: round(last[side]["added_mib"]) for side in SIDES},
                "means": {m: float(np.mean(last["ranks"]["values"][m])) for m in METRICS},
                "n_users": n_users,
                "n_items": n_items,
                "dimension": DIMENSION,
                "threads": options.threads,
                "rounds": rounds,
                "repeats": options.repeats,
                "seed": options.seed,
                "load_average": os.getloadavg()[0],
                "machine": platform.machine(),
                "versions": {
                    "python": platform.python_version(),
                    "numpy": version("numpy"),
                    "rectools": "0.19.0",
                },
            }
        )
    )


if __name__ == "__main__":
    main()
