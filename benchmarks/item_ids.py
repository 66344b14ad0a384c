"""Lengths, collisions and seconds of item ids on Amazon Beauty, and what their first symbols know.

    python benchmarks/item_ids.py [--quick] [--data FOLDER] [--seed 0]

Ids are random numbers, title tokens of the embedded LLM, collaborative codes (training co-occurrence alone),
and semantic codes by residual k-means and by a residual autoencoder on MiniLM vectors of the titles. An id
that says something puts a user's test item near the last item known before: `first` is the share of users
for whom both begin with the same symbol, and `first_by_chance` that share after items were dealt their ids
at random. `largest_id_hr1` is the largest-id rule of the leak audit with items in the order of their ids:
about nothing for numbers without a meaning; where neighbours in that order are alike, the rule may use it.

The two compared are balanced grouping as we do it, and as a plain loop that takes the nearest free pair of a
point and a group; both must give the same groups.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import frugalrec
from frugalrec.data.audit.ids import next_id_hits
from frugalrec.data.dataset import TITLE, Dataset
from frugalrec.data.readers import read
from frugalrec.data.splits import Split, split
from frugalrec.grounding.item_ids import (
    ItemIds,
    collaborative,
    figures,
    random_numbers,
    semantic,
    semantic_rqvae,
    titles,
)
from frugalrec.grounding.item_ids.grouping import matched
from frugalrec.llm import models
from frugalrec.llm.encoders import SentenceEncoder
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.rng import generator

ROOT = Path(__file__).resolve().parent.parent


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process: they hardly change when the machine is busy."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def fewer_items(dataset: Dataset, n: int, seed: int) -> Dataset:
    """The interactions with n items drawn at random, and users with three of them or more."""
    kept = generator(seed, "item-ids", "quick").permutation(dataset.n_items)[:n]
    smaller = dataset.where(np.isin(dataset.items, kept))
    smaller = smaller.where(np.repeat(smaller.lengths >= 3, smaller.lengths))
    frame, texts = smaller.to_frames()
    return Dataset.from_frames(
        frame, texts.filter(texts["item"].is_in(dataset.item_ids[kept].tolist())), name="quick"
    )


def knowledge(ids: ItemIds, parts: Split, seed: int) -> dict[str, float]:
    """How much more often than by chance a test item begins like the last item known before it."""
    users = parts.users("test")
    history = parts.history("test")
    last = history.items[history.indptr[users + 1] - 1]
    target = parts.test.items[parts.test.indptr[users]]
    first = ids.codes[:, 0]
    chance = [
        float((first[order][last] == first[order][target]).mean())
        for order in (generator(seed, "item-ids", "chance", i).permutation(first.size) for i in range(5))
    ]
    share = float((first[last] == first[target]).mean())
    return {"first": share, "first_by_chance": float(np.mean(chance))}


def leak(ids: ItemIds, dataset: Dataset) -> float:
    """HR@1 of "the item after the largest in the history", with items in the order of their ids."""
    rank = np.empty(ids.n_items, dtype=np.int64)
    rank[np.lexsort(ids.codes.T[::-1])] = np.arange(ids.n_items)
    return float(next_id_hits(dataset, rank).mean())


def by_pairs(costs: np.ndarray, room: int) -> np.ndarray:
    """Take the nearest pair of a free point and a group with room, again and again."""
    groups, places = np.full(len(costs), -1), [room] * costs.shape[1]
    for pair in np.argsort(costs, axis=None, kind="stable").tolist():
        point, group = divmod(pair, costs.shape[1])
        if groups[point] < 0 and places[group]:
            groups[point] = group
            places[group] -= 1
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="600 items, without titles as ids")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "item-ids", help="cache of vectors")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    data = options.data or Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data"))
    dataset = read(data / "amazon-beauty", "p5", seed=options.seed)
    if options.quick:
        dataset = fewer_items(dataset, 600, options.seed)
    parts, seed, size = split(dataset, "leave-last-out"), options.seed, 16 if options.quick else 256
    names, texts = dataset.item_ids, dataset.item_text[TITLE].to_list()

    encoder = SentenceEncoder.load("minilm-l6", cache=options.folder / "vectors")
    encoding_s, vectors = timed(lambda: encoder.embed([text or "" for text in texts]))
    makers: dict[str, Callable[[], ItemIds]] = {
        "random numbers": lambda: random_numbers(names, seed=seed),
        "collaborative": lambda: collaborative(parts.train, branches=32, leaf=32, seed=seed),
        "semantic, k-means": lambda: semantic(vectors, names, size=size, seed=seed),
        "semantic, autoencoder": lambda: semantic_rqvae(vectors, names, size=size, seed=seed),
    }
    if not options.quick:
        prompt = NextTitlePrompt(noun="product")
        lm = LocalLM.load(models.get("smollm2-135m"))
        makers["titles"] = lambda: titles(lm, prompt, texts, names, seed=seed)
    rows = []
    for name, make in makers.items():
        seconds, ids = timed(make)
        (row,) = figures([ids]).to_dicts()
        evidence = {key: ids.evidence[key] for key in ("together", "unexplained") if key in ids.evidence}
        row |= {"kind": name, "cpu_s": seconds, "largest_id_hr1": leak(ids, dataset), **evidence}
        rows.append(row | knowledge(ids, parts, seed))
        print(
            " | ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in rows[-1].items()
            ),
            flush=True,
        )

    costs = generator(seed, "item-ids", "matching").random((dataset.n_items, 32))
    room = -(-dataset.n_items // 32)
    ours_s, ours = timed(lambda: matched(costs, room))
    loop_s, loop = timed(lambda: by_pairs(costs, room))
    print(
        json.dumps(
            {
                "benchmark": "item ids: lengths and collisions on Amazon Beauty",
                "ours_s": ours_s,
                "baseline_s": loop_s,
                "ratio": loop_s / ours_s,
                "equal": bool(np.array_equal(ours, loop)),
                "kinds": rows,
                "encoding_cpu_s": encoding_s,
                "items": dataset.n_items,
                "users": int(parts.users("test").size),
                "untitled": sum(not text for text in texts),
                "seed": seed,
                "quick": options.quick,
                "versions": {
                    "frugalrec": frugalrec.__version__,
                    "numpy": np.__version__,
                    "torch": torch.__version__,
                },
            }
        )
    )


if __name__ == "__main__":
    main()
