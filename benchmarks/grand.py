"""GraNd scores of all training rows: closed form and one vectorised pass a batch against a loop over rows.

The loop is autograd's: for every row, a forward pass, a backward pass of the softmax loss by all parameters,
and the norm. It is timed on some rows and scaled. Ours scores every row; the scores must be equal. Beside it,
on the same rows and surrogate: the times of `tf-dcon` and `recranker`, score and choice apart, and how far
GraNd orders rows as EL2N does.

    python benchmarks/grand.py                # dealrec-games, 49,156 users
    python benchmarks/grand.py --quick        # 3,000 users
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from frugalrec.data.examples import Examples, examples
from frugalrec.data.splits import Split
from frugalrec.recommenders.sequential import SASRec
from frugalrec.selection import create
from frugalrec.selection.diagnostics import agreement, overlap
from frugalrec.types import DoubleArray, LongArray
from influence import folds

KEPT = 1024


def naive(model: SASRec, rows: Examples, some: list[int]) -> DoubleArray:
    """Return the norms of some rows, by one forward and one backward pass each."""
    network, found = model.network_, []
    parameters = list(network.parameters())
    for row in some:
        history = torch.from_numpy(rows.history(row)[-model.max_length :].astype(np.int64))
        state = network.next_states(history[None], torch.tensor([history.shape[0]]))
        logits = state @ network.items.weight.T
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([int(rows.targets[row])]))
        gradients = torch.autograd.grad(loss, parameters)
        found.append(sum(float(one.double().square().sum()) for one in gradients) ** 0.5)
    return np.array(found)


def chosen(name: str, rows: Examples, parts: Split, **options: Any) -> tuple[dict[str, float], LongArray]:
    """Return the seconds of scoring and of choosing, and the kept rows."""
    scorer = create(name, **options)
    start = time.perf_counter()
    scores = scorer.score(rows, parts.train)
    middle = time.perf_counter()
    kept = scorer.choose(scores, min(KEPT, len(rows) // 10)).kept
    return {"score_s": middle - start, "choose_s": time.perf_counter() - middle}, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--epochs", type=int, default=2, help="of the surrogate: early in training")
    parser.add_argument("--loop", type=int, help="rows of the naive loop (default 300, quick: 100)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts = folds(arguments.quick)
    rows = examples(parts.train, window=50, min_history=1)
    model = SASRec(
        seed=0, epochs=arguments.epochs, loss="sampled-softmax", initial="random", threads=arguments.threads
    ).fit(parts.train, parts.valid)

    start, cpu = time.perf_counter(), time.process_time()
    scores = create("grand", surrogates=[model]).score(rows, parts.train)
    ours_s, ours_cpu_s = time.perf_counter() - start, time.process_time() - cpu
    n_loop = arguments.loop or (100 if arguments.quick else 300)
    some = np.random.default_rng(1).permutation(len(rows))[:n_loop].tolist()
    naive(model, rows, some[:5])
    start, cpu = time.perf_counter(), time.process_time()
    wanted = naive(model, rows, some)
    factor = len(rows) / len(some)
    baseline_s = (time.perf_counter() - start) * factor
    baseline_cpu_s = (time.process_time() - cpu) * factor
    gap = float(np.abs(scores[some] / wanted - 1).max())

    dcon_s, dcon = chosen("tf-dcon", rows, parts)
    recranker_s, recranker = chosen("recranker", rows, parts, surrogates=[model])
    el2n = create("el2n", surrogates=[model]).score(rows, parts.train)
    print(
        json.dumps(
            {
                "benchmark": "grand: gradient norms of every row at once against a loop of backward passes",
                "ours_s": ours_s,
                "baseline_s": baseline_s,
                "ratio": baseline_s / ours_s,
                "equal": gap < 1e-4,
                "largest_relative_gap": gap,
                "ratio_cpu": baseline_cpu_s / ours_cpu_s,
                "ours_cpu_s": ours_cpu_s,
                "rows_per_s": len(rows) / ours_s,
                "spearman_with_el2n": round(agreement(scores, el2n), 4),
                "tf-dcon": dcon_s,
                "recranker": recranker_s,
                "overlap_of_both": round(overlap(dcon, recranker), 4),
                "kept": int(dcon.size),
                "rows": len(rows),
                "items": parts.train.n_items,
                "parameters": sum(p.numel() for p in model.network_.parameters()),
                "epochs": arguments.epochs,
                "threads": arguments.threads,
                "seed": 0,
                "versions": {"python": platform.python_version(), "torch": version("torch")},
            }
        )
    )


if __name__ == "__main__":
    main()
