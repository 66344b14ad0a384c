"""Twenty candidates of one user: the shared prefix computed once against one prompt each.

    python benchmarks/prefix.py [--quick] [--model smollm2-135m] [--threads 2]

Scores the same whole prompts three ways with the same network: `ours` packs one user's prefix and
all candidates into one row; `batched` computes every prompt whole, in token-budget batches; `single`
computes them one by one. The ratio printed is that against `batched`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from frugalrec.llm import models
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.loading import fast_bfloat16
from frugalrec.llm.local import LocalLM
from frugalrec.rng import generator

FILMS = (
    "The Shawshank Redemption (1994)", "Alien (1979)", "Heat (1995)", "The Matrix (1999)",
    "Fargo (1996)", "Blade Runner (1982)", "Toy Story (1995)", "Casablanca (1942)",
    "The Terminator (1984)", "Amadeus (1984)", "Pulp Fiction (1994)", "Jurassic Park (1993)",
    "Star Wars (1977)", "The Lion King (1994)", "Psycho (1960)", "Groundhog Day (1993)",
    "Vertigo (1958)", "Braveheart (1995)", "Total Recall (1990)", "Trainspotting (1996)",
    "Forrest Gump (1994)", "Die Hard (1988)", "Apollo 13 (1995)", "The Godfather (1972)",
    "Aladdin (1992)", "Taxi Driver (1976)", "Mulholland Drive (2001)", "Raging Bull (1980)",
    "Gladiator (2000)", "Memento (2000)", "The Big Lebowski (1998)", "Goodfellas (1990)",
    "Stand by Me (1986)", "Chinatown (1974)", "Jaws (1975)",
)  # fmt: skip
ANSWERS = (" Yes", " No")


def users(n_users: int, n_candidates: int, seed: int) -> list[PromptGroup]:
    """Return one prompt group a user: some 250 tokens of history, some 20 tokens a candidate."""
    groups = []
    for user in range(n_users):
        rng = generator(seed, "prefix", user)
        order = rng.permutation(len(FILMS))
        liked, disliked = order[:15], order[15:22]
        history = (
            "A member of a film club has rated these films.\n"
            f"Liked: {', '.join(json.dumps(FILMS[i]) for i in liked)}.\n"
            f"Disliked: {', '.join(json.dumps(FILMS[i]) for i in disliked)}.\n"
            "Would the member like the film"
        )
        picks = rng.integers(len(FILMS), size=n_candidates)
        suffixes = tuple(f" {json.dumps(FILMS[i])}? Yes or no? Answer:" for i in picks)
        groups.append(PromptGroup(prefix=history, suffixes=suffixes))
    return groups


def best_of(repeats: int, work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return the fewest wall and CPU seconds of some runs, and the last result."""
    wall, cpu = [], []
    for _ in range(repeats):
        started, worked = time.perf_counter(), time.process_time()
        result = work()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - worked)
    return min(wall), min(cpu), result


def compare(model: str, dtype: str, groups: list[PromptGroup], repeats: int) -> dict[str, Any]:
    """Time the three ways in one number type, and compare their log-probabilities.

    In float32 the shared prefix must equal one prompt each to 1e-4. In bfloat16 no two ways of
    computing agree that well, so there its mean error against float32 must not exceed that of one
    prompt each by more than half.
    """
    ours = LocalLM.load(model, dtype=dtype)
    batched = LocalLM(ours.network, ours.tokenizer, model=model, share_prefix=False)
    single = LocalLM(ours.network, ours.tokenizer, model=model, share_prefix=False, max_batch_tokens=1)
    ours.choose([PromptGroup(prefix="warm", suffixes=(" up", " it"))], ANSWERS)
    ours_s, ours_cpu_s, (shared, usage) = best_of(repeats, lambda: ours.choose(groups, ANSWERS))
    batched_s, batched_cpu_s, (whole, naive) = best_of(repeats, lambda: batched.choose(groups, ANSWERS))
    single_s, single_cpu_s, (alone, _) = best_of(1, lambda: single.choose(groups, ANSWERS))
    mine, together, one = (np.concatenate(scores) for scores in (shared, whole, alone))
    errors = {
        "max_difference_batched": float(np.abs(mine - together).max()),
        "max_difference_single": float(np.abs(mine - one).max()),
        "baselines_differ_by": float(np.abs(one - together).max()),
    }
    if dtype == "float32":
        equal = max(errors["max_difference_batched"], errors["max_difference_single"]) <= 1e-4
    else:
        exact = np.concatenate(LocalLM.load(model, dtype="float32").choose(groups, ANSWERS)[0])
        errors["mean_error_ours"] = float(np.abs(mine - exact).mean())
        errors["mean_error_single"] = float(np.abs(one - exact).mean())
        equal = errors["mean_error_ours"] <= 1.5 * errors["mean_error_single"]
    return {
        "dtype": dtype,
        "device": ours.device,
        "ours_s": ours_s,
        "batched_s": batched_s,
        "single_s": single_s,
        "ratio_batched": batched_s / ours_s,
        "ratio_single": single_s / ours_s,
        # CPU seconds hardly change when the machine is busy with something else; wall seconds do.
        "ours_cpu_s": ours_cpu_s,
        "batched_cpu_s": batched_cpu_s,
        "single_cpu_s": single_cpu_s,
        "ratio_batched_cpu": batched_cpu_s / ours_cpu_s,
        "ratio_single_cpu": single_cpu_s / ours_cpu_s,
        "tokens_computed": usage.tokens_in,
        "tokens_asked": naive.tokens_in,
        "tokens_per_s": usage.tokens_in / ours_s,
        "tokens_per_cpu_s": usage.tokens_in / ours_cpu_s,
        "baseline_tokens_per_s": naive.tokens_in / batched_s,
        **errors,
        "equal": equal,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one user, one number type, one repeat")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.model in models.EMBEDDED:
        models.get(options.model)
    groups = users(1 if options.quick else 3, 20, options.seed)
    chosen = "bfloat16" if torch.cuda.is_available() or fast_bfloat16() else "float32"
    dtypes = [chosen] if options.quick else [chosen, *({"bfloat16", "float32"} - {chosen})]
    rows = []
    for dtype in dtypes:
        rows.append(compare(options.model, dtype, groups, 1 if options.quick else 3))
        print(json.dumps(rows[-1]))
    first = rows[0]
    print(
        json.dumps(
            {
                "benchmark": "prefix",
                "ours_s": first["ours_s"],
                "baseline_s": first["batched_s"],
                "ratio": first["ratio_batched"],
                "equal": all(row["equal"] for row in rows),
                "ratio_cpu": first["ratio_batched_cpu"],
                "ratio_single": first["ratio_single"],
                "rows": rows,
                "seed": options.seed,
                "users": len(groups),
                "candidates": 20,
                "threads": torch.get_num_threads(),
                "model": options.model,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
