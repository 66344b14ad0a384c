"""Does selection help? One budget of training samples, chosen in several ways, tunes one LLM.

    python benchmarks/selection.py --data dealrec-games
    python benchmarks/selection.py --data dealrec-microlens-50k
    python benchmarks/selection.py --quick             # three minutes, says nothing

The recommender is the embedded LLM with an item head (`frugalrec.tuning.item_head`): LoRA in the last
layer and a linear map, tuned by the softmax over the whole catalogue, one forward pass a user. It is
not the generative recommender of the published experiments, whose full rankings would take days here.
Effort is measured at the head: the gradient norm of the loss that tuning minimises. Layers below the
tuned one read each prompt once for all arms; what an arm would have paid for reading on its own is in
its cost.

All arms choose `--budget` of the same `--rows` candidate rows (one a user, drawn at random), with one
surrogate (SASRec, trained on the whole train fold) a seed. Each arm is run with `--seeds` seeds of
surrogate, choice and tuning. Tuning does not depend on the arm. Rows:

- `random`, `el2n`, `grand`, `ccs`: baselines;
- `reference`: the choice of DEALRec's published code (one negative a row, one matrix of the surrogate,
  min-max, effort of one LoRA matrix, groups of equal width, the top tenth pruned);
- `frugal`: ours, the default preset of `dealrec`: effort for twice the budget only;
- `influence`, `easy`: its parts alone (highest validation influence; lowest effort); `hard`: highest
  effort;
- `valid-popular`: rows whose target is most popular in the validation fold, drawn without any model:
  what influence would be if it only were popularity;
- `full`: every candidate row;
- `titles`: the item head before the LLM is added (mean title vector), `untuned`: before tuning.

The baseline of the ratio is tuning on all candidate rows; `equal` says whether ours was at or above it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalrec.data.examples import Examples, examples
from frugalrec.data.readers import read
from frugalrec.data.splits import Split, split
from frugalrec.evaluation.compare import average_seeds, difference
from frugalrec.evaluation.evaluate import evaluate_ranks, fold_ranks
from frugalrec.evaluation.ranks import FactorScores, Score
from frugalrec.llm.frozen_layers import TokenStates
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.recommenders import create
from frugalrec.recommenders.baselines import RecentPopularity
from frugalrec.recommenders.sequential import SASRec
from frugalrec.rng import generator
from frugalrec.selection.combination import combine
from frugalrec.selection.dealrec import PRESETS, DEALRec, highest
from frugalrec.selection.diagnostics import overlap
from frugalrec.selection.grand import GraNd
from frugalrec.selection.head_norms import head_gradient_norms
from frugalrec.selection.surrogates import CCS, EL2N, Influence
from frugalrec.tuning.item_head import (
    ItemHeadConfig,
    Prompts,
    example_histories,
    histories_of,
    item_head,
    output_title_vectors,
    profiles,
    read_prompts,
    take,
)
from frugalrec.types import Evaluation, FloatArray, IntArray, LongArray

ROOT = Path(__file__).resolve().parent.parent
NOUNS = {"dealrec-games": "game", "dealrec-microlens-50k": "video"}
SHOWN, CHARS = 8, 50
"""Titles in a prompt, and characters of each."""
METRICS = tuple(f"{name}@{k}" for name in ("recall", "ndcg") for k in (10, 20, 50))
BITS = "rank_bits"
"""Mean log2 of a held-out item's rank, lower is better: every user counts, at a cut-off one in fifty does."""
ARMS = ("random", "el2n", "grand", "ccs", "reference", "frugal", "influence", "easy", "hard", "valid-popular")
HEAD = ItemHeadConfig()


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything that is the same for all arms."""

    name: str
    parts: Split
    candidates: Examples
    """The rows that may be selected."""
    users: IntArray
    """The test users."""
    vectors: FloatArray
    rows_read: Prompts
    users_read: Prompts
    read_s: dict[str, float]

    @cached_property
    def bits(self) -> str:
        """A hash of the title vectors and of what was read of the users."""
        return hashlib.sha256(self.vectors.tobytes() + self.users_read.states.values.tobytes()).hexdigest()


def task(name: str, lm: LocalLM, arguments: argparse.Namespace) -> Task:
    """Draw rows and users, and read their prompts with the frozen layers, or find that done."""
    data = Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data"))
    whole = read(data / name, name=name)
    parts = split(whole, "given")
    every = examples(parts.train, window=50, min_history=1)
    drawn = generator(0, "benchmark", "selection", "rows").permutation(len(every))[: arguments.rows]
    candidates = every.take(np.sort(drawn))
    users = generator(0, "benchmark", "selection", "users").permutation(parts.users("test"))
    users = np.sort(users[: arguments.users]).astype(np.int32)
    vectors = output_title_vectors(lm, whole.titles)
    prompt = NextTitlePrompt(noun=NOUNS[name], window=SHOWN, max_title_chars=CHARS)
    found, seconds = {}, {}
    for label, histories in (
        ("rows", example_histories(candidates)),
        ("users", histories_of(parts.history("test"), users)),
    ):
        texts = [prompt.question([whole.titles[item] for item in history]) for history in histories]
        shown = [history[-SHOWN:] for history in histories]
        found[label], seconds[label] = read_or_load(
            arguments.folder / f"{name}-{label}", lm, texts, shown, vectors
        )
    return Task(
        name=name,
        parts=parts,
        candidates=candidates,
        users=users,
        vectors=vectors,
        rows_read=found["rows"],
        users_read=found["users"],
        read_s=seconds,
    )


def read_or_load(
    stem: Path, lm: LocalLM, texts: list[str], shown: list[IntArray], vectors: FloatArray
) -> tuple[Prompts, float]:
    """Read prompts, or load what an earlier call of this benchmark read, with the seconds it took."""
    path = stem.with_name(f"{stem.name}-{digest(lm.fingerprint, HEAD.layers, texts)}.npz")
    if not path.is_file():
        start = time.perf_counter()
        states = read_prompts(lm, texts, shown, vectors, layers=HEAD.layers).states
        stored(
            path,
            values=states.values,
            indptr=states.indptr,
            cut=states.cut,
            seconds=time.perf_counter() - start,
        )
    with np.load(path, allow_pickle=False) as arrays:
        states = TokenStates(values=arrays["values"], indptr=arrays["indptr"], cut=int(arrays["cut"]))
        return Prompts(states=states, profiles=profiles(vectors, shown)), float(arrays["seconds"])


def digest(*parts: Any) -> str:
    """Return a name for a result from everything that decides it."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def stored(path: Path, **arrays: Any) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.stem}.part.npz")
    np.savez(part, **arrays)
    part.replace(path)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Rows that an arm keeps, and what choosing them took."""

    kept: LongArray
    seconds: dict[str, float]
    read: LongArray | None = None
    """Rows that the LLM read to choose; default: only those that are kept."""


class Scores:
    """Scores of the candidate rows through one surrogate, each computed once and timed."""

    def __init__(self, work: Task, lm: LocalLM, seed: int, arguments: argparse.Namespace) -> None:
        self.work, self.lm, self.seed = work, lm, seed
        self.surrogate = SASRec(
            seed=seed,
            epochs=arguments.epochs,
            loss="sampled-softmax",
            threads=arguments.threads,
            checkpoint=arguments.folder / f"{work.name}-surrogate-{seed}-{arguments.epochs}",
        ).fit(work.parts.train, work.parts.valid)
        self.surrogate_s = sum(epoch["seconds"] for epoch in self.surrogate.history_)
        self._found: dict[str, tuple[FloatArray, float]] = {}

    def of(self, name: str) -> tuple[FloatArray, float]:
        """Return scores and the seconds they took."""
        if name not in self._found:
            start = time.perf_counter()
            scores = self._score(name)
            self._found[name] = scores, time.perf_counter() - start
        return self._found[name]

    def _score(self, name: str) -> FloatArray:
        work = self.work
        given: dict[str, Any] = {"surrogates": [self.surrogate], "valid": work.parts.valid, "seed": self.seed}
        if name in ("el2n", "grand"):
            scorer = EL2N(**given) if name == "el2n" else GraNd(**given)
            return scorer.score(work.candidates, work.parts.train)
        preset, _, part = name.partition(" ")
        if part == "influence":
            options = {**given, **PRESETS[preset].influence}
            return Influence(**options).score(work.candidates, work.parts.train)
        pattern = "lora_" if preset == "frugal" else r"self_attn\.v_proj\.lora_B"
        with item_head(self.lm, work.vectors, replace(HEAD, seed=self.seed)) as head:
            return head_gradient_norms(head, work.rows_read, work.candidates.targets, parameters=pattern)


def choose(arm: str, scores: Scores, budget: int) -> Choice:
    """Return what an arm keeps."""
    work, seed = scores.work, scores.seed
    n = len(work.candidates)
    if arm == "random":
        return Choice(
            kept=np.sort(generator(seed, "benchmark", "random").permutation(n)[:budget]), seconds={}
        )
    if arm == "valid-popular":
        counts = np.bincount(work.parts.valid.items, minlength=work.parts.valid.n_items)
        ties = generator(seed, "benchmark", "ties").random(n)
        return Choice(
            kept=highest((counts[work.candidates.targets] + ties).astype(np.float32), budget), seconds={}
        )
    if arm == "full":
        return Choice(kept=np.arange(n), seconds={})
    seconds = {"surrogate": scores.surrogate_s}
    if arm in ("el2n", "grand", "ccs"):
        found, seconds["scores"] = scores.of("grand" if arm == "grand" else "el2n")
        kept = CCS().choose(found, budget, seed=seed).kept if arm == "ccs" else highest(found, budget)
        return Choice(kept=kept, seconds=seconds)
    if arm == "influence":
        found, seconds["scores"] = scores.of("frugal influence")
        return Choice(kept=highest(found, budget), seconds=seconds)
    if arm in ("easy", "hard"):
        found, spent = scores.of("frugal effort")
        kept = highest(-found if arm == "easy" else found, budget)
        return Choice(kept=kept, seconds={"scores": spent}, read=np.arange(n))
    if arm == "frugal":
        return frugal(scores, budget, seconds)
    preset = PRESETS[arm]
    parts = {part: scores.of(f"{arm} {part}") for part in ("influence", "effort")}
    seconds["scores"] = sum(spent for _, spent in parts.values())
    weights = {"influence": 1.0, "effort": preset.weight}
    total = combine({part: found for part, (found, _) in parts.items()}, weights, preset.normalisation)
    kept = DEALRec(preset=arm).choose(total.astype(np.float32), budget, seed=seed).kept
    return Choice(kept=kept, seconds=seconds, read=np.arange(n))


def frugal(scores: Scores, budget: int, seconds: dict[str, float]) -> Choice:
    """Return what the preset keeps: influence of all rows, effort of the best twice as many as are kept."""
    (helpful, one), (hard, other) = scores.of("frugal influence"), scores.of("frugal effort")
    pool = highest(helpful, 2 * budget)
    preset, parts = PRESETS["frugal"], {"influence": helpful[pool], "effort": hard[pool]}
    total = combine(parts, {"influence": 1.0, "effort": preset.weight}, preset.normalisation)
    share = pool.size / len(scores.work.candidates)  # effort was computed for all rows, for other arms
    spent = {**seconds, "scores": one + share * other}
    return Choice(kept=pool[highest(total.astype(np.float32), budget)], seconds=spent, read=pool)


def tuned(work: Task, lm: LocalLM, kept: LongArray, seed: int, folder: Path) -> tuple[FloatArray, float]:
    """Tune on some rows; return the test users' vectors and the seconds of tuning. Known ones are loaded."""
    rows = [work.candidates.users[kept].tolist(), work.candidates.targets[kept].tolist()]
    name = digest(work.name, rows, work.users.tolist(), work.bits, lm.fingerprint, seed, HEAD)
    path = folder / f"tuned-{name}.npz"
    if not path.is_file():
        with item_head(lm, work.vectors, replace(HEAD, seed=seed)) as head:
            spent = head.fit(take(work.rows_read, kept), work.candidates.targets[kept])["wall_s"]
            users = head.users(work.users_read)
        stored(path, users=users, seconds=spent)
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["users"], float(arrays["seconds"])


def judged(arm: str, score: Score, work: Task, parts: Split) -> Evaluation:
    """Evaluate scores of the whole catalogue at the test users."""
    ranks = fold_ranks(score, parts, "test", users=work.users[parts.test.lengths[work.users] > 0])
    found = evaluate_ranks(arm, ranks, METRICS)
    bits = np.log2(ranks.ranks)
    per_user = np.bincount(ranks.rows, weights=bits, minlength=ranks.users.size) / ranks.n_relevant
    return replace(found, values={**found.values, BITS: per_user})


def of_vectors(work: Task, users: FloatArray) -> Score:
    """Return the scores that user vectors and title vectors make."""
    table = np.zeros((work.parts.train.n_users, users.shape[1]), dtype=np.float32)
    table[work.users] = users
    return FactorScores(table, work.vectors)


def references(work: Task, lm: LocalLM, surrogates: list[SASRec]) -> dict[str, list[Score]]:
    """Return the arms without selection."""
    parts, history = work.parts, work.parts.history("test")
    recent = RecentPopularity(fold="valid").fit(history)
    popular = create("popularity").fit(parts.train)
    with item_head(lm, work.vectors, HEAD) as head:
        untuned = head.users(work.users_read)
    return {
        "recent popularity": [partial(recent.score, histories=history)],
        "popularity": [partial(popular.score, histories=history)],
        "sasrec": [partial(one.score, histories=history) for one in surrogates],
        "titles": [of_vectors(work, work.users_read.profiles)],
        "untuned": [of_vectors(work, untuned)],
    }


def cost(work: Task, choice: Choice, kept: int, tuning_s: float) -> dict[str, float]:
    """Return the seconds and LLM tokens of choosing and tuning; serving is the same for all arms."""
    lengths = work.rows_read.states.lengths
    read = lengths[choice.kept if choice.read is None else choice.read].sum()
    seconds = {
        **choice.seconds,
        "read": work.read_s["rows"] * float(read / lengths.sum()),
        "tuning": tuning_s,
    }
    return {**seconds, "total_s": sum(seconds.values()), "tokens_read": int(read), "samples": kept}


def experiment(work: Task, lm: LocalLM, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run all arms on one data set."""
    known = np.bincount(work.parts.train.items, minlength=work.parts.train.n_items) > 0
    warm = replace(work.parts, test=work.parts.test.where(known[work.parts.test.items]))
    folds = {"all": work.parts, "warm": warm}
    runs: dict[str, dict[str, list[Evaluation]]] = {fold: {} for fold in folds}
    costs: dict[str, list[dict[str, float]]] = {}
    kept: dict[str, list[LongArray]] = {}

    def judge(arm: str, score: Score) -> None:
        for fold, parts in folds.items():
            runs[fold].setdefault(arm, []).append(judged(arm, score, work, parts))

    surrogates = []
    for seed in range(arguments.seeds):
        scores = Scores(work, lm, seed, arguments)
        surrogates.append(scores.surrogate)
        for arm in (*ARMS, "full") if seed < arguments.full else ARMS:
            choice = choose(arm, scores, arguments.budget)
            users, spent = tuned(work, lm, choice.kept, seed, arguments.folder)
            kept.setdefault(arm, []).append(choice.kept)
            costs.setdefault(arm, []).append(cost(work, choice, choice.kept.size, spent))
            judge(arm, of_vectors(work, users))
            print(
                json.dumps({"data": work.name, "seed": seed, "arm": arm, **figures(runs["all"][arm][-1])}),
                flush=True,
            )
    for arm, found in references(work, lm, surrogates).items():
        for score in found:
            judge(arm, score)
    return {
        "rows": {fold: {arm: summary(found) for arm, found in each.items()} for fold, each in runs.items()},
        "paired": {fold: comparisons(each) for fold, each in runs.items()},
        "cost": {arm: averaged(each) for arm, each in costs.items()},
        "overlap_between_seeds": {
            arm: round(float(np.mean([overlap(*pair) for pair in combinations(each, 2)])), 3)
            for arm, each in kept.items()
            if len(each) > 1
        },
        "read_s": work.read_s,
        "test_users": {fold: int(each["random"][0].users.size) for fold, each in runs.items()},
    }


def figures(found: Evaluation) -> dict[str, float]:
    """Return the means, rounded."""
    return {name: round(found.mean(name), 4) for name in (*METRICS, BITS)}


def summary(runs: list[Evaluation]) -> dict[str, Any]:
    """Return the means over users and seeds, and the deviation between seeds."""
    both = average_seeds(runs)
    spread = both.details["seed_sd"]
    sd = {} if len(runs) == 1 else {name: round(spread[name], 4) for name in (*METRICS, BITS)}
    return {**figures(both), "seeds": len(runs), "seed_sd": sd}


def comparisons(runs: Mapping[str, list[Evaluation]]) -> dict[str, dict[str, list[float]]]:
    """Return gap and 95 % interval of pairs of arms, users paired, seeds averaged: [gap, low, high]."""
    pairs = [(arm, "random") for arm in (*ARMS, "full") if arm != "random"]
    pairs += [("frugal", other) for other in ("reference", "full", "valid-popular", "influence", "titles")]
    pairs += [("random", "titles"), ("full", "titles")]
    found = {}
    for one, other in pairs:
        gaps = [
            difference(average_seeds(runs[one]), average_seeds(runs[other]), name)
            for name in (*METRICS, BITS)
        ]
        found[f"{one} - {other}"] = {
            gap.metric: [round(v, 4) for v in (gap.mean, gap.low, gap.high)] for gap in gaps
        }
    return found


def averaged(costs: list[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each part of the cost."""
    return {name: round(float(np.mean([one[name] for one in costs])), 2) for name in costs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", choices=list(NOUNS), default="dealrec-games")
    parser.add_argument("--rows", type=int, help="candidate rows (default 2048, quick: 200)")
    parser.add_argument("--budget", type=int, help="rows that are kept (default 256, quick: 60)")
    parser.add_argument("--users", type=int, help="test users (default 2000, quick: 100)")
    parser.add_argument("--seeds", type=int, help="default 5, quick: 2")
    parser.add_argument("--full", type=int, default=3, help="seeds of tuning on all rows, at least 1")
    parser.add_argument("--epochs", type=int, help="of the surrogates (default 1)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "selection")
    arguments = parser.parse_args()
    for name, small, usual in (
        ("rows", 200, 2048),
        ("budget", 60, 256),
        ("users", 100, 2000),
        ("seeds", 2, 5),
        ("epochs", 1, 1),
    ):
        if getattr(arguments, name) is None:
            setattr(arguments, name, small if arguments.quick else usual)
    if arguments.full < 1:
        parser.error("--full must be at least 1: tuning on all rows is what the ratio compares with")
    torch.set_num_threads(arguments.threads)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    lm = LocalLM.load("smollm2-135m")
    found = experiment(task(arguments.data, lm, arguments), lm, arguments)
    spent = {arm: found["cost"][arm]["total_s"] for arm in ("frugal", "full")}
    rows = found["rows"]["all"]
    print(
        json.dumps(
            {
                "benchmark": f"selection: {arguments.budget} of {arguments.rows} rows of {arguments.data}",
                "ours_s": spent["frugal"],
                "baseline_s": spent["full"],
                "ratio": spent["full"] / spent["frugal"],
                "equal": rows["frugal"]["ndcg@20"] >= rows["full"]["ndcg@20"],
                **found,
                "head": {
                    name: getattr(HEAD, name)
                    for name in ("layers", "rank", "epochs", "learning_rate", "scale")
                },
                "wall_s": round(time.perf_counter() - start, 1),
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                "threads": arguments.threads,
                "seed": 0,
                "versions": {
                    "python": platform.python_version(),
                    "torch": version("torch"),
                    "transformers": version("transformers"),
                },
            }
        )
    )


if __name__ == "__main__":
    main()
