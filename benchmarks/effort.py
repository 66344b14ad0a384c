"""DEALRec's effort score: one pass a batch with closed-form norms against one pass a sample.

    python benchmarks/effort.py [--quick] [--threads 2] [--rows 32] [--dtype float32]

Rows are real (Games: history of up to ten titles, next title), the LLM is the embedded one, and every
number comes from the same tokens and the same LoRA matrices (rank 8 on all linear layers, B = 0).

- `loop` is what one writes first: one sample at a time, the model's own loss (logits at every
  position), a backward pass that leaves a gradient in every LoRA matrix, then the norm of the chosen
  ones. It serves both choices below, since the cost is the same.
- `loop_frozen` is kinder: only the chosen matrix needs a gradient, as in the published code (which,
  however, runs two backward passes a sample; one is counted here).
- ours, for `reference` (matrix B of the last layer's v_proj) and for `all` LoRA matrices.

Rows are drawn as neighbours in length out of 2,000, because batches of a real call, which sorts
thousands of rows by length, look like that. Two prompts: `published` begins with an instruction as
long as the one of the published code, `frugal` with this package's one sentence. The main ratio is
`loop` over ours for `reference` and the `published` prompt. `reference` computes what all prompts
begin with only once below the last layer, which is exact; `reference_unshared` does not. For `all`
matrices sharing cannot be exact (see `frugalrec.selection.shared_prefix`), and nothing is shared.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from frugalrec.data.dataset import Dataset
from frugalrec.data.examples import examples
from frugalrec.data.readers import read
from frugalrec.llm import models
from frugalrec.llm.fresh_lora import with_lora
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt, fitted
from frugalrec.llm.prefix import common_prefix
from frugalrec.llm.scoring import Query
from frugalrec.rng import generator
from frugalrec.selection.gradient_norms import GradientNorms, plan

ROOT = Path(__file__).resolve().parent.parent
NEIGHBOURS = 8
TASK = (
    "The following is an instruction for a task, together with the input that it refers to. Answer with "
    "what fulfils the request and with nothing else.\n\n### Instruction:\nHere are the games that a user has "
    "bought so far. Please recommend one more game which this user is going to like.\n\n### Input:\n"
)
PROMPTS = {
    "published": NextTitlePrompt(noun="game", instruction=TASK),
    "frugal": NextTitlePrompt(noun="game"),
}
"""`published` has an instruction of the kind and length that BIGRec and DEALRec put before each history."""


def texts(data: Dataset, lm: LocalLM, prompt: NextTitlePrompt, n: int, seed: int) -> list[Query]:
    """Return the tokens of n rows: neighbours in length, all lengths alike represented."""
    rows = examples(data, window=prompt.window)
    drawn = generator(seed, "benchmark", "effort").permutation(len(rows))[:2000]
    found = []
    for row in drawn:
        history = [data.titles[item] for item in rows.history(int(row))]
        query = fitted(lm, prompt, history, data.titles[rows.targets[row]], 512)
        if query is not None:
            found.append(query)
    found.sort(key=lambda query: len(query.tokens))
    blocks = max(1, n // NEIGHBOURS)
    size = -(-n // blocks)
    starts = [int((b + 0.5) / blocks * len(found) - size / 2) for b in range(blocks)]
    return [query for start in starts for query in found[start : start + size]][:n]


class Watch:
    """Wall and CPU seconds, and the peak of resident memory above its level at the start, of a block."""

    def __enter__(self) -> Watch:
        self.level = self.peak = _resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, _resident())

    def report(self, n: int) -> dict[str, float]:
        """Return what was measured, for n rows."""
        return {
            "s": self.wall,
            "cpu_s": self.cpu,
            "rows_per_s": n / self.wall,
            "rows_per_cpu_s": n / self.cpu,
            "memory_mb": (self.peak - self.level) / 1e6,
        }


def _resident() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def loop(
    network: Any,
    queries: Sequence[Query],
    graph: Callable[[str], bool],
    chosen: Sequence[Callable[[str], bool]],
) -> list[np.ndarray[Any, Any]]:
    """Return norms by one forward and one backward pass a sample, for each choice of parameters.

    Args:
        network: The network with LoRA layers.
        queries: The samples.
        graph: Which parameters need a gradient.
        chosen: Choices, among these, of those whose norm is taken.
    """
    network.eval()
    named = dict(network.named_parameters())
    for name, parameter in named.items():
        parameter.requires_grad_(graph(name))
    norms = []
    for query in queries:
        answer = query.targets[:, 0].tolist()
        ids = torch.tensor([[*query.tokens, answer[-1]]])
        labels = torch.full_like(ids, -100)
        labels[0, -len(answer) :] = torch.tensor(answer)
        network.zero_grad()
        network(input_ids=ids, labels=labels).loss.backward()
        gradients = {name: p.grad for name, p in named.items() if p.grad is not None}
        norms.append(
            [
                float(
                    torch.cat([g.double().flatten() for name, g in gradients.items() if choice(name)]).norm()
                )
                for choice in chosen
            ]
        )
    network.zero_grad()
    return list(np.array(norms).T)


def ours(
    network: Any, queries: Sequence[Query], parameters: str, max_batch_tokens: int, *, share: bool
) -> np.ndarray[Any, Any]:
    norms = np.full(len(queries), np.nan)
    with GradientNorms(network, parameters=parameters) as compute:
        shared = compute.share(queries) if share else 0
        for batch in plan(network, queries, max_batch_tokens, shared=shared):
            norms[batch] = compute([queries[b] for b in batch])
    return norms


def measured(
    lm: LocalLM, network: Any, queries: Sequence[Query], max_batch_tokens: int
) -> tuple[dict[str, Watch], dict[str, float]]:
    """Return what each way took for the same rows, and the largest relative differences of the norms."""
    last = network.config.num_hidden_layers - 1
    pick = f"layers.{last}.self_attn.v_proj.lora_B"
    runs: dict[str, Watch] = {}
    norms: dict[str, Any] = {}
    for name, parameters, share in (
        ("reference", re.escape(pick), True),
        ("reference_unshared", re.escape(pick), False),
        ("all", "lora_", False),
    ):
        with Watch() as runs[name]:
            norms[name] = ours(network, queries, parameters, max_batch_tokens, share=share)
    with Watch() as runs["loop_frozen"]:
        loop(network, queries, lambda p: pick in p, [lambda p: pick in p])
    with Watch() as runs["loop"]:
        chosen, everything = loop(
            network, queries, lambda p: "lora_" in p, [lambda p: pick in p, lambda p: "lora_" in p]
        )
    expected = {"reference": chosen, "reference_unshared": chosen, "all": everything}
    return runs, {name: float(np.abs(norms[name] / e - 1).max()) for name, e in expected.items()}


def ratios(runs: dict[str, Watch]) -> dict[str, float]:
    """Return how many times longer the loops take; CPU seconds hardly change on a busy machine."""
    pairs = {
        "ratio": ("loop", "reference"),
        "ratio_unshared": ("loop", "reference_unshared"),
        "ratio_frozen": ("loop_frozen", "reference"),
        "ratio_all": ("loop", "all"),
        "ratio_sharing": ("reference_unshared", "reference"),
    }
    walls = {name: runs[a].wall / runs[b].wall for name, (a, b) in pairs.items()}
    return walls | {f"{name}_cpu": runs[a].cpu / runs[b].cpu for name, (a, b) in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 rows")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--max-batch-tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.model in models.EMBEDDED:
        models.get(options.model)
    n = 8 if options.quick else options.rows
    data = read(Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data")) / "dealrec-games")
    lm = LocalLM.load(options.model, dtype=options.dtype, device="cpu")
    tables = {}
    with with_lora(lm, 8, 16, "all-linear", options.seed) as network:
        for name, prompt in PROMPTS.items():
            queries = texts(data, lm, prompt, n, options.seed)
            ours(network, queries[:2], "lora_", options.max_batch_tokens, share=False)  # warm up
            runs, differences = measured(lm, network, queries, options.max_batch_tokens)
            tables[name] = {
                "ours_s": runs["reference"].wall,
                "baseline_s": runs["loop"].wall,
                **ratios(runs),
                "max_relative_difference": differences,
                "runs": {way: watch.report(n) for way, watch in runs.items()},
                "tokens": sum(len(query.tokens) for query in queries),
                "opening_tokens": common_prefix([query.tokens for query in queries]),
                "answer_tokens": sum(len(query.targets) for query in queries),
            }
            print(json.dumps({name: tables[name]}))
    main_table = tables["published"]
    limit = 1e-4 if options.dtype == "float32" else 1e-2
    print(
        json.dumps(
            {
                "benchmark": "effort",
                **{key: main_table[key] for key in ("ours_s", "baseline_s", "ratio")},
                "equal": all(max(t["max_relative_difference"].values()) <= limit for t in tables.values()),
                "ratio_cpu": main_table["ratio_cpu"],
                "ratio_all_cpu": main_table["ratio_all_cpu"],
                "ratio_frugal_cpu": tables["frugal"]["ratio_cpu"],
                "ratio_frugal_all_cpu": tables["frugal"]["ratio_all_cpu"],
                "prompts": tables,
                "rows": n,
                "dtype": options.dtype,
                "seed": options.seed,
                "threads": torch.get_num_threads(),
                "model": options.model,
                "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
            }
        )
    )


if __name__ == "__main__":
    main()
