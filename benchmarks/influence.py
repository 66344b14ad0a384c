"""Influence scores of all training rows: one directional derivative per batch against a loop over samples.

The loop is what the method's description suggests: for every row, a forward and a backward pass of the
same loss on the same parameters, and the inner product of the gradient with q. It is timed on some rows
and scaled. Ours scores every row; its time includes q, the gradient of the validation risk. The scores
must be equal. Beside it: how far two scorings of one surrogate agree (ours exactly; the published loss
with another draw of negatives), and how far surrogates trained from different seeds agree.

    python benchmarks/influence.py                # dealrec-games, 49,156 users
    python benchmarks/influence.py --quick        # 3,000 users
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalrec.data.examples import Examples, examples
from frugalrec.data.readers import read
from frugalrec.data.splits import Split, split
from frugalrec.recommenders.sequential import SASRec
from frugalrec.selection.catalogue_losses import Asked, TransitionLoss
from frugalrec.selection.diagnostics import agreement
from frugalrec.selection.influence import Problem, Vector, risk_gradient, slopes
from frugalrec.selection.surrogate_losses import transition_loss
from frugalrec.selection.surrogates import Influence, next_events
from frugalrec.types import DoubleArray, FloatArray

ROOT = Path(__file__).resolve().parent.parent


def folds(quick: bool) -> Split:
    data = Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data"))
    whole = read(data / "dealrec-games", name="dealrec-games")
    if quick:
        chosen = np.random.default_rng(0).permutation(whole.n_users)[:3_000]
        whole = whole.where(np.isin(whole.rows, chosen))
    return split(whole, "given")


def trained(parts: Split, seed: int, arguments: argparse.Namespace) -> SASRec:
    model = SASRec(
        seed=seed,
        epochs=arguments.epochs,
        loss="sampled-softmax",
        threads=arguments.threads,
        checkpoint=None if arguments.quick else arguments.folder / f"seed-{seed}",
    )
    return model.fit(parts.train, parts.valid)


def naive(problem: Problem, loss: TransitionLoss, q: Vector, rows: list[int]) -> DoubleArray:
    """Return the scores of some rows, by one forward and one backward pass each."""
    network, found = problem.network, []
    chosen = list(network.parameters())
    direction = [q[name] for name, _ in network.named_parameters()]
    for row in rows:
        history = torch.from_numpy(problem.examples.history(row)[-problem.max_length :].astype(np.int64))
        state = network.next_states(history[None], torch.tensor([history.shape[0]]))
        asked = Asked(
            users=problem.examples.users[row : row + 1],
            targets=torch.tensor([int(problem.examples.targets[row])]),
            rows=np.array([row]),
        )
        value = loss.values(state, network.items.weight, asked).sum()
        gradients = torch.autograd.grad(value, chosen)
        found.append(sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True)))
    return np.array(found)


def timed(parts: Split, model: SASRec, rows: Examples, name: str, n_loop: int) -> dict[str, Any]:
    """Time one loss: ours on every row, the loop on some."""
    valid = next_events(parts.train, parts.valid, model.max_length)
    wall, cpu = time.perf_counter(), time.process_time()
    problem = Problem(model.network_, rows, max_length=model.max_length)
    risk = Problem(model.network_, valid, max_length=model.max_length)
    q = risk_gradient(risk, transition_loss(name, parts.train, valid.users, 0))
    gradient_s = time.perf_counter() - wall
    loss = transition_loss(name, parts.train, rows.users, 0)
    scores = slopes(problem, loss, q)
    ours = {"ours_s": time.perf_counter() - wall, "ours_cpu_s": time.process_time() - cpu}
    some = np.random.default_rng(1).permutation(len(rows))[:n_loop].tolist()
    naive(problem, loss, q, some[:5])
    wall, cpu = time.perf_counter(), time.process_time()
    wanted = naive(problem, loss, q, some)
    factor = len(rows) / len(some)
    baseline = {
        "baseline_s": (time.perf_counter() - wall) * factor,
        "baseline_cpu_s": (time.process_time() - cpu) * factor,
    }
    gap = float(np.abs(scores[some] - wanted).max() / np.abs(wanted).max())
    return {
        **ours,
        **baseline,
        "ratio": baseline["baseline_s"] / ours["ours_s"],
        "ratio_cpu": baseline["baseline_cpu_s"] / ours["ours_cpu_s"],
        "risk_gradient_s": gradient_s,
        "largest_gap": gap,
        "equal": gap < 1e-5,
        "rows_per_s": len(rows) / ours["ours_s"],
    }


def scored(parts: Split, models: list[SASRec], rows: Examples, **options: Any) -> FloatArray:
    return Influence(surrogates=models, valid=parts.valid, **options).score(rows, parts.train)


def between(singles: list[FloatArray], size: int) -> float:
    """Return the mean agreement of all pairs of disjoint groups of so many surrogates' mean scores."""
    scaled = [scores / np.nanstd(scores) for scores in singles]
    groups = list(combinations(range(len(scaled)), size))
    means = {group: np.mean([scaled[one] for one in group], axis=0) for group in groups}
    pairs = [(a, b) for a, b in combinations(groups, 2) if not set(a) & set(b)]
    return float(np.mean([agreement(means[a], means[b]) for a, b in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--epochs", type=int, help="of the surrogates (default 8, quick: 2)")
    parser.add_argument("--loop", type=int, help="rows of the naive loop (default 400, quick: 100)")
    parser.add_argument("--surrogates", type=int, default=4, help="an even number; halves are compared")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "influence")
    arguments = parser.parse_args()
    arguments.epochs = arguments.epochs or (2 if arguments.quick else 8)
    torch.set_num_threads(arguments.threads)
    parts = folds(arguments.quick)
    rows = examples(parts.train, window=50, min_history=1)
    models = [trained(parts, seed, arguments) for seed in range(arguments.surrogates)]
    cost = {
        name: timed(parts, models[0], rows, name, arguments.loop or (100 if arguments.quick else 400))
        for name in ("softmax", "expected-bce")
    }
    half = len(models) // 2
    stability: dict[str, Any] = {}
    for name in ("softmax", "expected-bce", "sampled-bce"):
        singles = [scored(parts, [model], rows, loss=name) for model in models]
        again = scored(parts, models[:1], rows, loss=name, seed=1)
        stability[name] = {
            "same_surrogate_scored_twice": round(agreement(singles[0], again), 4),
            "identical": bool(np.array_equal(singles[0], again)),
            "two_surrogate_seeds": round(between(singles, 1), 4),
            f"means_of_{half}_surrogates": round(between(singles, half), 4),
        }
        print(json.dumps({name: stability[name]}), flush=True)
    print(
        json.dumps(
            {
                "benchmark": "influence: every row by directional derivatives against a loop of gradients",
                **{key: cost["softmax"][key] for key in ("ours_s", "baseline_s", "ratio", "equal")},
                "cost": cost,
                "stability_spearman": stability,
                "rows": len(rows),
                "parameters": sum(p.numel() for p in models[0].network_.parameters()),
                "items": parts.train.n_items,
                "epochs": arguments.epochs,
                "surrogate_valid_ndcg": [
                    round(max(e.get("valid_ndcg", 0.0) for e in model.history_), 4) for model in models
                ],
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "threads": arguments.threads,
                "seed": 0,
                "versions": {"python": platform.python_version(), "torch": version("torch")},
            }
        )
    )


if __name__ == "__main__":
    main()
