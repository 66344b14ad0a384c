"""Listwise re-ranking by the embedded LLM on the film club: does it answer, does it rank, what does it cost?

    python benchmarks/listwise.py [--quick] [--users 30] [--probed 10] [--threads 1] [--seed 0]

EASE's first 20 of some members are re-ranked by SmolLM2-135M, untuned: as a list that it writes (listwise)
and by the probability of letters (first-token, three orders). Reported: how answers were read, how far they
repeat the order shown, NDCG@10 beside the cheap list, a random permutation and the ceiling, NDCG by the place
of the held-out film, tokens and CPU seconds. An answer of numbers is compared with the same answer in titles,
in tokens. `ours_s` against `baseline_s`: some questions answered in one batch, and one by one; `equal` says
whether the texts are the same.

CPU seconds of this process hardly change when the machine is busy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import transformers

from frugalrec.data.simulate import film_club
from frugalrec.data.splits import split
from frugalrec.evaluation.controls import headroom, random_permutation
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.grounding.listwise import (
    FirstTokenReranker,
    ListwisePrompt,
    ListwiseReranker,
    ListwiseResult,
    position_probe,
)
from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.local import LocalLM
from frugalrec.llm.local_chat import LocalChat
from frugalrec.recommenders import create
from frugalrec.rng import generator

METRIC = "ndcg@10"
PROMPT = ListwisePrompt(noun="film", window=10)
CHECKED, CHECKED_TOKENS = 4, 48
"""Questions that are answered in one batch and one by one, and how long their answers may be."""


class Keeping(LocalChat):
    """Remembers the questions and the answers, to be looked at."""

    def __init__(self, lm: LocalLM) -> None:
        super().__init__(lm, requests_per_batch=32)
        self.kept: list[tuple[ChatRequest, str]] = []

    def chat(self, requests: Any, *, progress: Any = None) -> Any:
        """Answer, and keep."""
        answers, usage = super().chat(requests, progress=progress)
        self.kept += [(r, a.text or "") for r, a in zip(requests, answers, strict=True)]
        return answers, usage


def figures(result: ListwiseResult, quality: float, cpu_s: float) -> dict[str, Any]:
    n, report = max(len(result.reasons), 1), dict(result.report)
    report["places"] = report["places"] and [round(place, 3) for place in report["places"]]
    return {
        METRIC: round(quality, 4),
        **{key: round(value, 3) if isinstance(value, float) else value for key, value in report.items()},
        "tokens_in_per_user": round(result.usage.tokens_in / n),
        "tokens_out_per_user": round(result.usage.tokens_out / n),
        "cpu_s_per_user": round(cpu_s / n, 2),
    }


def probed(reranker: Any, history: Any, ranking: Any, targets: Any) -> dict[str, Any]:
    found = position_probe(reranker, history, ranking, targets)
    return {
        "users": int(found.users.size),
        "asked": found.asked,
        "by_position": dict(zip(map(str, found.positions), found.means.round(3).tolist(), strict=True)),
        "spread": round(found.spread, 3),
        "standard_error": round(found.standard_error, 3),
        "chance": round(found.chance, 3),
    }


def answer_lengths(lm: LocalLM, ranking: Any, titles: list[str]) -> dict[str, float]:
    """Mean tokens and characters of an answer in numbers, and of the same answer in titles."""
    numbers, words = [], []
    for row in range(ranking.users.size):
        order = generator(0, "answer", row).permutation(ranking.k)
        numbers.append(json.dumps({"ranking": (order + 1).tolist()}))
        words.append(
            json.dumps({"ranking": [titles[ranking.items[row, i]] for i in order]}, ensure_ascii=False)
        )
    tokens = [np.mean([len(row) for row in lm.encode(texts)]) for texts in (numbers, words)]
    return {
        "tokens_numbers": round(float(tokens[0]), 1),
        "tokens_titles": round(float(tokens[1]), 1),
        "token_ratio": round(float(tokens[1] / tokens[0]), 2),
        "characters_numbers": round(float(np.mean([len(text) for text in numbers])), 1),
        "characters_titles": round(float(np.mean([len(text) for text in words])), 1),
    }


def batched(lm: LocalLM, requests: list[ChatRequest]) -> tuple[float, float, bool]:
    """CPU seconds of all requests in one batch and one by one, and whether the texts agree."""
    texts, seconds = [], []
    for size in (len(requests), 1):
        started = time.process_time()
        answers, _ = LocalChat(lm, requests_per_batch=size).chat(requests)
        seconds.append(time.process_time() - started)
        texts.append([answer.text for answer in answers])
    return seconds[0], seconds[1], texts[0] == texts[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--users", type=int, default=30)
    parser.add_argument("--probed", type=int, default=10, help="users of the position probe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.quick:
        options.users, options.probed = 3, 0
    lm = LocalLM.load("smollm2-135m", dtype="float32", device="cpu", threads=options.threads)
    cut = split(film_club(n_members=600, seed=options.seed))
    history, targets = cut.history("test"), cut.targets("test")
    users = generator(options.seed, "listwise", "users").permutation(cut.users("test"))
    cheap = create("ease").fit(history).recommend(users, 20)
    inside = [targets.history(int(u)).size > 0 for u in users]
    cheap = cheap.take(np.flatnonzero(inside)[: options.users])
    shown = {"seed": options.seed, "users": cheap.users.size}

    def quality(ranking: Any) -> float:
        return evaluate_ranking("", ranking, targets, [METRIC], seen=history).mean(METRIC)

    def run(reranker: Any) -> tuple[ListwiseResult, dict[str, Any]]:
        started = time.process_time()
        result = reranker.rerank(history, cheap)
        return result, figures(result, quality(result.ranking), time.process_time() - started)

    ceiling = headroom(cheap, targets, 20, METRIC, seen=history)
    controls = [quality(random_permutation(cheap, 20, seed)) for seed in range(20)]
    reading = FirstTokenReranker(lm, PROMPT, replicas=3, presentation="balanced", seed=options.seed)
    _, letters = run(reading)
    print(json.dumps({"first_token": letters}, indent=1), flush=True)
    chat = Keeping(lm)
    writing = ListwiseReranker(chat, PROMPT, seed=options.seed)
    written, listwise = run(writing)
    print(json.dumps({"listwise": listwise}, indent=1))
    for _, text in chat.kept[:3]:
        print(f"an answer: {text[:200]!r}", flush=True)
    probes = {}
    some = cheap.take(np.arange(min(options.probed, cheap.users.size)))
    if some.users.size:
        probes["first_token"] = probed(reading, history, some, targets)
    if some.users.size and "answered" in written.reasons:  # without an answer there is no place to compare
        probes["listwise"] = probed(writing, history, some, targets)
    requests = [request for request, _ in chat.kept]
    ours_s, baseline_s, equal = batched(
        lm, [replace(request, max_tokens=CHECKED_TOKENS) for request in requests[:CHECKED]]
    )
    print(
        json.dumps(
            {
                "benchmark": "listwise",
                "ours_s": round(ours_s, 2),
                "baseline_s": round(baseline_s, 2),
                "ratio": round(baseline_s / ours_s, 2),
                "equal": equal,
                **shown,
                "cheap": round(quality(cheap), 4),
                "shuffled": round(float(np.mean(controls)), 4),
                "ceiling": round(ceiling.mean(METRIC), 4),
                "answer": answer_lengths(lm, cheap, list(history.titles)),
                "listwise": listwise,
                "first_token": letters,
                "position": probes,
                "threads": torch.get_num_threads(),
                "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            }
        )
    )


if __name__ == "__main__":
    main()
