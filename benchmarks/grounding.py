"""Grounding on real game titles: ranks for all gammas in one pass, and beam search over the title trie.

    python benchmarks/grounding.py [--quick] [--users 8] [--beams 20] [--rows 1000] [--threads 1]

Ranks: the places of held-out games in a (rows x 17,332 items) matrix of distances, against sorting every
row twice and reading one number from it, and the search for gamma against doing so for each gamma.
Trie: the embedded LLM writes titles of the catalogue, against transformers' own beam search under
`prefix_allowed_tokens_fn` with the same prompts, beams and network. A step is what follows the reading of
the prompts, divided by the passes through the network; of it, `outside_network_s` is all that is not the
network, and `masking_s` what keeps titles real: the prefix function and its mask there; here everything
that finds, scores and sorts the children. The ratio printed is that of whole steps, network included.

On a CPU all seconds are CPU seconds of this process: they hardly change when the machine is busy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from frugalrec.data.dataset import Dataset
from frugalrec.data.readers import read
from frugalrec.evaluation.ranks import target_ranks
from frugalrec.grounding import GAMMAS, TrieGrounder, beam, gamma_ranks, popularity_weights, reweight
from frugalrec.grounding.neighbours import all_distances
from frugalrec.llm import models
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.rng import generator
from frugalrec.types import Ranking

ROOT = Path(__file__).resolve().parent.parent
PROMPT = NextTitlePrompt(noun="game")


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = now()
    result = work()
    return now() - started, result


def sorted_twice(distances: np.ndarray, targets: list[int]) -> list[int]:
    """The place of one item a row, as it is usually read: every row sorted twice."""
    places = torch.from_numpy(distances).argsort(dim=1).argsort(dim=1)
    return [places[row, item].item() for row, item in enumerate(targets)]


def ranks(data: Dataset, rows: int, each: int, seed: int) -> dict[str, Any]:
    """Compare places and times of ours with sorting twice, on distances between random vectors.

    Ours works through the whole grid of gammas; the loop, through every `each`-th one, scaled.
    """
    rng = generator(seed, "grounding", "ranks")
    held_out = data.where(data.folds == 2)
    users = rng.permutation(np.flatnonzero(held_out.lengths == 1))[:rows].astype(np.int32)
    targets = [int(held_out.history(int(user))[0]) for user in users]
    vectors = rng.standard_normal((data.n_items, 64)).astype(np.float32)
    near = vectors[targets] + 2.0 * rng.standard_normal((users.size, 64)).astype(np.float32)
    distances = all_distances(near, vectors)
    weights = popularity_weights(data.where(data.folds == 0).item_counts)
    row_of = np.full(data.n_users, -1)
    row_of[users] = np.arange(users.size)

    ours_s, plain = timed(lambda: target_ranks(lambda u: -distances[row_of[u]], users, held_out))
    naive_s, naive = timed(lambda: sorted_twice(distances, targets))
    equal = bool(((plain.better <= naive) & (naive <= plain.better + plain.tied)).all())
    all_s, found = timed(lambda: gamma_ranks(distances, weights, GAMMAS, users, held_out))
    loop_s, looped = timed(
        lambda: {g: sorted_twice(reweight(distances, weights, g), targets) for g in GAMMAS[::each]}
    )
    for gamma, places in looped.items():
        own = found[gamma]
        equal &= bool(((own.better <= places) & (places <= own.better + own.tied)).all())
    loop_s *= len(GAMMAS) / len(looped)
    return {
        "rows": int(users.size),
        "items": data.n_items,
        "ours_s": ours_s,
        "sorted_twice_s": naive_s,
        "ratio": naive_s / ours_s,
        "tied": int(plain.tied.sum()),
        "gammas": len(GAMMAS),
        "gammas_sorted": len(looped),
        "gammas_ours_s": all_s,
        "gammas_sorted_twice_s": loop_s,
        "gammas_ratio": loop_s / all_s,
        "equal": equal,
    }


class Passes:
    """Seconds inside the network and inside the masking, tokens that went in, and when each pass ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.masking: list[float] = []

    @contextmanager
    def watching(self, network: Any, owner: Any, mask: str) -> Iterator[None]:
        """Watch a network's passes and the calls of a class's method that masks."""
        forward, masking = network.forward, getattr(owner, mask)

        def watched(*args: Any, **options: Any) -> Any:
            spent, output = timed(lambda: forward(*args, **options))
            self.ends.append(now())
            self.seconds.append(spent)
            self.tokens.append(options["input_ids"].numel())
            return output

        def masked(*args: Any) -> Any:
            spent, output = timed(lambda: masking(*args))
            self.masking.append(spent)
            return output

        network.forward = watched
        setattr(owner, mask, masked)
        try:
            yield
        finally:
            del network.forward
            setattr(owner, mask, masking)

    def report(self, total: float, end: float) -> dict[str, Any]:
        """What the steps after the first pass took, and how much of that was not the network."""
        after, steps = end - self.ends[0], len(self.ends) - 1
        outside = after - sum(self.seconds[1:])
        return {
            "s": total,
            "prompts_s": self.seconds[0],
            "prompt_tokens_read": self.tokens[0],
            "steps": steps,
            "step_s": after / steps,
            "outside_network_s": outside / steps,
            "masking_s": sum(self.masking) / steps,
            "masking_share": sum(self.masking) / after,
        }


def ours(grounder: TrieGrounder, data: Dataset, users: np.ndarray, k: int) -> tuple[Ranking, dict[str, Any]]:
    passes = Passes()
    with passes.watching(grounder.lm.network, beam._Search, "expand"):
        seconds, (ranking, usage) = timed(lambda: grounder.ground(data, users, k, seen="include"))
        end = now()
    return ranking, passes.report(seconds, end) | {"tokens_out": usage.tokens_out}


def transformers_own(
    lm: LocalLM, grounder: TrieGrounder, data: Dataset, users: np.ndarray, beams: int
) -> tuple[list[list[tuple[int, float]]], dict[str, Any]]:
    """(title, score) lists of `generate` under a prefix function, and its times."""
    trie = grounder.trie(data)
    allowed: dict[tuple[int, ...], list[int]] = {}
    title_of = {}
    for title, path in enumerate(np.split(trie.path, trie.path_indptr[1:-1])):
        tokens = tuple(path.tolist())
        title_of[tokens] = title
        for n in range(len(tokens)):
            found = allowed.setdefault(tokens[:n], [])
            if tokens[n] not in found:
                found.append(tokens[n])
    questions = [PROMPT.question([data.titles[i] for i in data.history(int(u))]) for u in users]
    rows, end_token = lm.encode(questions), lm.tokenizer.eos_token_id
    width = max(map(len, rows))
    ids = torch.tensor([[lm.pad_id] * (width - len(row)) + row for row in rows]).to(lm.network.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]).to(lm.network.device)
    settings = transformers.GenerationConfig(
        num_beams=beams, num_return_sequences=beams, do_sample=False, length_penalty=0.0,
        early_stopping=False, max_new_tokens=trie.longest, pad_token_id=lm.pad_id, eos_token_id=end_token,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    passes = Passes()
    processor = transformers.PrefixConstrainedLogitsProcessor
    with passes.watching(lm.network, processor, "__call__"), torch.no_grad():
        seconds, output = timed(
            lambda: lm.network.generate(
                ids,
                attention_mask=mask,
                generation_config=settings,
                prefix_allowed_tokens_fn=lambda _, row: allowed.get(tuple(row[width:].tolist()), [end_token]),
            )
        )
        end = now()
    lists: list[list[tuple[int, float]]] = [[] for _ in rows]
    for n, (row, score) in enumerate(zip(output.sequences, output.sequences_scores.tolist(), strict=True)):
        tokens = row[width:].tolist()
        tokens = tuple(tokens[: tokens.index(end_token) + 1]) if end_token in tokens else tuple(tokens)
        lists[n // beams].append((title_of.get(tokens, -1), score))
    return lists, passes.report(seconds, end)


def trie_search(data: Dataset, model: str, n_users: int, beams: int, seed: int) -> dict[str, Any]:
    lm = LocalLM.load(model)
    history = data.where(data.folds == 0)
    active = np.flatnonzero(history.lengths >= PROMPT.window)
    users = generator(seed, "grounding", "users").permutation(active)[:n_users].astype(np.int32)
    grounder = TrieGrounder(lm, PROMPT, beams=beams)
    build_s, trie = timed(lambda: grounder.trie(history))
    grounder.ground(history, users[:1], 1)  # the network is tried out once
    ranking, own = ours(grounder, history, users, beams)
    lists, theirs = transformers_own(lm, grounder, history, users, beams)

    listed = [row[row >= 0].tolist() for row in ranking.items]
    title_of_item = np.empty(trie.n_items, dtype=np.int64)
    title_of_item[trie.items] = np.repeat(np.arange(trie.n_titles), np.diff(trie.item_indptr))
    worse = differs = shared = 0
    for row, other in enumerate(lists):
        best = dict(zip(title_of_item[listed[row]].tolist(), ranking.scores[row].tolist(), strict=False))
        scores = sorted(best.values(), reverse=True)
        worse += sum(a < b - 1e-2 for a, (_, b) in zip(scores, other, strict=False))
        both = [(best[title], score) for title, score in other if title in best]
        shared += len(both)
        differs += sum(abs(a - b) > 1e-2 for a, b in both)
    return {
        "model": model,
        "device": lm.device,
        "dtype": lm.dtype,
        "users": int(users.size),
        "beams": beams,
        "titles": trie.n_titles,
        "nodes": trie.n_nodes,
        "build_s": build_s,
        "ours": own,
        "transformers": theirs,
        "ratio_step": theirs["step_s"] / own["step_s"],
        "ratio_outside_network": theirs["outside_network_s"] / own["outside_network_s"],
        "ratio_masking": theirs["masking_s"] / own["masking_s"],
        "ratio_total": theirs["s"] / own["s"],
        "invalid": int(sum(not 0 <= item < data.n_items for row in listed for item in row)),
        "duplicates": int(sum(len(row) - len(set(row)) for row in listed)),
        "listed": sum(map(len, listed)),
        "invalid_transformers": sum(title < 0 for row in lists for title, _ in row),
        "shared": shared,
        "worse_than_transformers": worse,
        "equal": not worse and not differs and shared > 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2 users, 10 beams, 100 rows, 5 gammas sorted")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.quick:
        options.users, options.beams, options.rows = 2, 10, 100
    if options.model in models.EMBEDDED:
        models.get(options.model)
    data = read(Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data")) / "dealrec-games")
    places = ranks(data, options.rows, 40 if options.quick else 10, options.seed)
    print(json.dumps(places))
    search = trie_search(data, options.model, options.users, options.beams, options.seed)
    print(json.dumps(search))
    print(
        json.dumps(
            {
                "benchmark": "grounding",
                "ours_s": search["ours"]["step_s"],
                "baseline_s": search["transformers"]["step_s"],
                "ratio": search["ratio_step"],
                "equal": places["equal"] and search["equal"],
                "ranks": places,
                "trie": search,
                "seed": options.seed,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "machine": platform.processor() or platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
