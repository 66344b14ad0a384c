"""One LoRA training step: users' prefixes computed once (ours) against one prompt a row.

    python benchmarks/tuning_step.py [--quick] [--model smollm2-135m] [--threads 2]

Both ways see the same tokens, go through the same network, and must give the same loss and the same
gradient. The baseline pads a batch of whole prompts; its logits, too, are computed at the last token
only, so what is compared is the packing alone.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import peft
import polars as pl
import torch
import transformers

import frugalrec.data
from frugalrec.llm.local import LocalLM
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.llm.queries import answer_queries
from frugalrec.rng import generator
from frugalrec.tuning import lora
from frugalrec.tuning.losses import two_way_loss
from frugalrec.tuning.packing import answer_logits, collate, pack

FILMS = f"{next(iter(frugalrec.data.__path__))}/films.csv"
WINDOW, NEGATIVES = 10, 3


def token_groups(base: LocalLM, users: int, seed: int) -> tuple[list[list[tuple[int, ...]]], list[int]]:
    """Return the tokens of each user's prompts (history of ten, four candidates), and of the answers."""
    prompt = RerankPrompt(noun="film", window=WINDOW)
    titles = pl.read_csv(FILMS)["title"].to_list()
    rng = generator(seed, "benchmark", "tuning_step")
    drawn = [rng.permutation(len(titles))[: WINDOW + 1 + NEGATIVES].tolist() for _ in range(users)]
    groups = [prompt.group(items[:WINDOW], None, items[WINDOW:], titles) for items in drawn]
    queries = answer_queries(base, groups, prompt.answers)
    return [[query.tokens for query in group] for group in queries], queries[0][0].targets[0].tolist()


def step(model: Any, batch: dict[str, torch.Tensor], answers: list[int]) -> tuple[float, float, torch.Tensor]:
    """Return wall and CPU seconds of one forward and backward pass, and the gradient as one vector."""
    model.zero_grad()
    wall, cpu = time.perf_counter(), time.process_time()
    labels = torch.arange(batch["rows"].numel()) % (1 + NEGATIVES) == 0
    two_way_loss(answer_logits(model, batch, answers), labels, batch["rows"]).backward()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one user a step, one repeat")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = LocalLM.load(options.model, dtype="float32", device="cpu")
    users, repeats = (1, 1) if options.quick else (4, 3)
    groups, answers = token_groups(base, users, options.seed)
    model = lora.add_lora(
        base.network, rank=8, alpha=16, dropout=0.0, targets="all-linear", seed=options.seed
    )
    model.train()
    packed = collate([pack(group) for group in groups], torch.float32)
    alone = collate([pack([tokens]) for group in groups for tokens in group], torch.float32)
    step(model, collate([pack([groups[0][0][:8]])], torch.float32), answers)  # warm up
    ours = [step(model, packed, answers) for _ in range(repeats)]
    baseline = [step(model, alone, answers) for _ in range(repeats)]
    ours_s, baseline_s = min(run[0] for run in ours), min(run[0] for run in baseline)
    ours_cpu_s, baseline_cpu_s = min(run[1] for run in ours), min(run[1] for run in baseline)
    difference = float((ours[0][2] - baseline[0][2]).norm() / baseline[0][2].norm())
    rows = users * (1 + NEGATIVES)
    print(
        json.dumps(
            {
                "benchmark": "tuning_step",
                "ours_s": ours_s,
                "baseline_s": baseline_s,
                "ratio": baseline_s / ours_s,
                "equal": difference < 1e-3,
                # CPU seconds hardly change when the machine is busy with something else.
                "ours_cpu_s": ours_cpu_s,
                "baseline_cpu_s": baseline_cpu_s,
                "ratio_cpu": baseline_cpu_s / ours_cpu_s,
                "gradient_relative_difference": difference,
                "rows": rows,
                "rows_per_s": rows / ours_s,
                "rows_per_cpu_s": rows / ours_cpu_s,
                "tokens_packed": int(packed["input_ids"].numel()),
                "tokens_alone": int(alone["input_ids"].numel()),
                "seed": options.seed,
                "threads": torch.get_num_threads(),
                "model": options.model,
                "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
            }
        )
    )


if __name__ == "__main__":
    main()
