"""Time to quality of SASRec with the full softmax: ours against RecTools 0.19.0, on Amazon Beauty.

Both sides are processes over the same files, with the same threads, 64 factors, two blocks, sequences
of 50, batches of 128 windows and the softmax over the whole catalogue. RecTools trains for its epoch
budget; ours trains epoch by epoch until its NDCG@10 on the same validation users, computed by the same
code (full ranking, the user's training items left out), is at least RecTools'. RecTools' time is its
training alone; ours includes the initialisation and its own validation after every epoch.

    python benchmarks/sasrec.py              # 22,363 users, two epochs of RecTools (some 10 minutes)
    python benchmarks/sasrec.py --quick      # 1,500 users, one epoch
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
K = 10
FACTORS, BLOCKS, LENGTH, BATCH = 64, 2, 50, 128


def ndcg(top: np.ndarray, targets: np.ndarray) -> float:
    """Return NDCG@10 with one target a user: the mean of 1 / log2(1 + rank)."""
    return float(((top == targets[:, None]) / np.log2(np.arange(2, K + 2))).sum(axis=1).mean())


def make(folder: Path, n_users: int | None, seed: int) -> dict[str, int]:
    """Write train and validation as (user, item) pairs in order of events; return the sizes."""
    from frugalrec.data.readers import read
    from frugalrec.data.splits import split

    data = os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data")
    whole = read(Path(data) / "amazon-beauty", name="amazon-beauty")
    if n_users is not None:
        chosen = np.random.default_rng(seed).permutation(whole.n_users)[:n_users]
        whole = whole.where(np.isin(whole.rows, chosen))
    parts = split(whole, "leave-last-out")
    # Codes anew, without gaps, so that both sides have the items of training and nothing else.
    items, inputs = np.unique(parts.train.items, return_inverse=True)
    users, owners = np.unique(parts.train.rows, return_inverse=True)
    keep = np.isin(parts.valid.items, items) & np.isin(parts.valid.rows, users)
    np.savez(
        folder / "data.npz",
        users=owners,
        items=inputs,
        valid_users=np.searchsorted(users, parts.valid.rows[keep]),
        valid_items=np.searchsorted(items, parts.valid.items[keep]),
    )
    return {"users": users.size, "items": items.size, "train": owners.size, "valid": int(keep.sum())}


def peer_side(folder: Path, epochs: int, threads: int, seed: int) -> dict[str, Any]:
    import pandas as pd
    import torch
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    data = np.load(folder / "data.npz")
    frame = pd.DataFrame(
        {
            Columns.User: data["users"],
            Columns.Item: data["items"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.Timestamp(2020, 1, 1)
            + pd.to_timedelta(np.arange(data["items"].size), unit="s"),
        }
    )
    dataset = Dataset.construct(frame)
    model = SASRecModel(
        n_factors=FACTORS,
        n_blocks=BLOCKS,
        n_heads=2,
        session_max_len=LENGTH,
        batch_size=BATCH,
        loss="softmax",
        epochs=epochs,
    )
    started, cpu = time.perf_counter(), time.process_time()
    model.fit(dataset)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    lists = model.recommend(users=data["valid_users"], dataset=dataset, k=K, filter_viewed=True)
    place = {user: row for row, user in enumerate(data["valid_users"].tolist())}
    top = np.full((data["valid_users"].size, K), -1)
    top[lists[Columns.User].map(place), lists[Columns.Rank] - 1] = lists[Columns.Item]
    return {"seconds": seconds, "cpu_seconds": cpu, "ndcg": ndcg(top, data["valid_items"])}


def our_side(folder: Path, goal: float, threads: int, seed: int) -> dict[str, Any]:
    import polars as pl
    import torch

    from frugalrec.data.dataset import Dataset
    from frugalrec.recommenders.sequential import SASRec

    torch.set_num_threads(threads)
    data = np.load(folder / "data.npz")
    frame = pl.DataFrame({"user": data["users"], "item": data["items"]})
    train = Dataset.from_frames(frame, name="train")
    users = np.argsort(train.user_ids.astype(np.int64)).astype(np.int32)[data["valid_users"]]
    targets = np.argsort(train.item_ids.astype(np.int64))[data["valid_items"]]
    seconds, cpu, reached = 0.0, 0.0, []
    for epochs in range(1, 101):
        model = SASRec(
            embedding_size=FACTORS,
            layers=BLOCKS,
            max_length=LENGTH,
            batch_size=BATCH,
            loss="softmax",
            epochs=epochs,
            seed=seed,
            threads=threads,
            checkpoint=folder / "checkpoint",
        )
        started, cpu_started = time.perf_counter(), time.process_time()
        model.fit(train)
        reached.append(ndcg(model.recommend(users, K).items, targets))
        seconds += time.perf_counter() - started
        cpu += time.process_time() - cpu_started
        if reached[-1] >= goal:
            break
    return {"seconds": seconds, "cpu_seconds": cpu, "ndcg": reached[-1], "epochs": len(reached)}


def run_side(python: Path, side: str, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Run one side in a process of its own and return what it measured."""
    out = folder / f"{side}.json"
    threads = arguments[arguments.index("--threads") + 1]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    subprocess.run(
        [str(python), "-W", "ignore", __file__, "--side", side, "--folder", str(folder), *arguments],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1,500 users and one epoch of RecTools")
    parser.add_argument("--epochs", type=int, help="epochs of RecTools (default: 2, quick: 1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--goal", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    epochs = options.epochs or (1 if options.quick else 2)
    if options.side:
        if options.side == "peer":
            found = peer_side(options.folder, epochs, options.threads, options.seed)
        else:
            found = our_side(options.folder, options.goal, options.threads, options.seed)
        found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        (options.folder / f"{options.side}.json").write_text(json.dumps(found))
        return
    from peers import peer_python

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = make(folder, 1_500 if options.quick else None, options.seed)
        common = ["--threads", str(options.threads), "--seed", str(options.seed)]
        peer = run_side(peer_python("rectools"), "peer", folder, [*common, "--epochs", str(epochs)])
        print(f"RecTools: {epochs} epoch(s) {peer['seconds']:.1f} s, NDCG@10 {peer['ndcg']:.4f}", flush=True)
        ours = run_side(Path(sys.executable), "ours", folder, [*common, "--goal", str(peer["ndcg"])])
        print(f"ours: {ours['epochs']} epoch(s) {ours['seconds']:.1f} s, NDCG@10 {ours['ndcg']:.4f}")
    print(
        json.dumps(
            {
                "benchmark": "sasrec: time to the same validation NDCG@10",
                "ours_s": round(ours["seconds"], 3),
                "baseline_s": round(peer["seconds"], 3),
                "ratio": round(peer["seconds"] / ours["seconds"], 2),
                "equal": ours["ndcg"] >= peer["ndcg"],
                "ours_cpu_s": round(ours["cpu_seconds"], 3),
                "baseline_cpu_s": round(peer["cpu_seconds"], 3),
                "cpu_ratio": round(peer["cpu_seconds"] / ours["cpu_seconds"], 2),
                "ours_ndcg": round(ours["ndcg"], 5),
                "baseline_ndcg": round(peer["ndcg"], 5),
                "ours_epochs": ours["epochs"],
                "baseline_epochs": epochs,
                "ours_peak_mb": ours["peak_mb"],
                "baseline_peak_mb": peer["peak_mb"],
                **sizes,
                "seed": options.seed,
                "threads": options.threads,
                "versions": {
                    "python": platform.python_version(),
                    "torch": version("torch"),
                    "rectools": "0.19.0",
                },
            }
        )
    )


if __name__ == "__main__":
    main()
