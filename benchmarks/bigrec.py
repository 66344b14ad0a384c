"""BIGRec's experiment: 1,024 shots, one LLM, and four ways from its words to items of the catalogue.

    python benchmarks/bigrec.py --data dealrec-games
    python benchmarks/bigrec.py --data dealrec-microlens-50k
    python benchmarks/bigrec.py --quick                # minutes, says nothing

The embedded LLM is tuned to write the title of the next item (LoRA in the top layers, response-only
loss, `--shots` rows of the train fold drawn at random; the epoch with the lower loss on `--valid-shots`
rows of the valid fold is kept). Test users are drawn at random among those with a history; what they
have seen is no candidate, for any row. Every choice (gamma, weights) is made on `--calibration` users of
the valid fold. Rows:

- `popularity`, `recent popularity` (counts of the valid fold), `sasrec` (cross-entropy, train fold),
  `titles` (cosine of MiniLM title vectors to the history's mean);
- `cheap`: a conditional logit over these three (log of recent counts, SASRec's logits, cosine), fitted on
  the calibration users: the first stage, and the control of everything below;
- `nearest`: BIGRec's grounding, a freely written title and the catalogue's nearest ones (states of the
  untuned LLM's last token, as published; left out by --quick), alone, and re-weighted by popularity and
  by SASRec with one gamma each; `nearest (MiniLM)`: the same with sentence vectors;
- `trie`: beams over the catalogue's titles; places behind the beams are filled up by
  `nearest (MiniLM)`;
- `candidates`: the first stage's best `--candidates` by the likelihood of their titles, less a share of
  what they have without history (that share is paid once an item, and not in the cost a user);
- `fused`: those with the first stage's scores; the weight may be 0.

For the calibration users recent counts leave out their own rows of the valid fold. The ratio is what
one full ranking of the test users by `trie` costs over one by `candidates`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch

from frugalrec.data.examples import examples
from frugalrec.data.readers import read
from frugalrec.data.splits import Fold, split
from frugalrec.evaluation.compare import difference
from frugalrec.evaluation.evaluate import evaluate_ranking, evaluate_ranks
from frugalrec.evaluation.ranks import target_ranks
from frugalrec.grounding.base import filled
from frugalrec.grounding.decoding import TrieGrounder
from frugalrec.grounding.fusion import choose_weight, fuse
from frugalrec.grounding.likelihood import TitleLikelihood
from frugalrec.grounding.nearest import NearestGrounder
from frugalrec.grounding.reweighting import (
    GAMMAS,
    choose_gamma,
    gamma_ranks,
    popularity_weights,
    reweight,
    score_weights,
)
from frugalrec.llm.embeddings import LMEmbedder
from frugalrec.llm.encoders import SentenceEncoder
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.recommenders.base import top_k
from frugalrec.recommenders.sequential import SASRec
from frugalrec.rng import generator
from frugalrec.tuning.generative import GenerativeConfig, GenerativeTuner
from frugalrec.types import Adapter, Evaluation, FloatArray, IntArray, Ranking

ROOT = Path(__file__).resolve().parent.parent
NOUNS = {"dealrec-games": "game", "dealrec-microlens-50k": "video"}
CUTS = {"dealrec-games": (10, 20), "dealrec-microlens-50k": (20, 50)}
SHOWN, CHARS = 8, 50
"""Titles in a prompt, and characters of each."""
LISTED = 50
CHUNK = 50
"""Users between two savings."""
WEIGHTS = tuple(n / 20 for n in range(21))
SURPRISES = (0.0, 0.5, 1.0)


class Work:
    """Data, users, models and what they said, each computed once and stored."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        data = Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data"))
        self.data = read(data / options.data, name=options.data)
        self.parts = split(self.data, "given")
        self.prompt = NextTitlePrompt(noun=NOUNS[options.data], window=SHOWN, max_title_chars=CHARS)
        self.users = {
            "valid": self._drawn("valid", options.calibration),
            "test": self._drawn("test", options.users),
        }
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics."""
        return [f"{name}@{k}" for name in ("recall", "ndcg") for k in CUTS[self.options.data]]

    @property
    def primary(self) -> str:
        """The metric that choices are made by."""
        return f"ndcg@{CUTS[self.options.data][1]}"

    def _drawn(self, fold: Fold, n: int) -> IntArray:
        known = self.parts.users(fold)
        known = known[self.parts.history(fold).lengths[known] > 0]
        order = generator(0, "benchmark", "bigrec", fold).permutation(known.size)
        return np.sort(known[order[:n]]).astype(np.int32)

    # What needs no LLM

    @cached_property
    def sasrec(self) -> SASRec:
        """The id model, fitted on the train fold."""
        options = self.options
        checkpoint = options.folder / f"{options.data}-sasrec-{options.epochs}"
        model = SASRec(
            seed=0,
            epochs=options.epochs,
            loss="sampled-softmax",
            threads=options.threads,
            checkpoint=checkpoint,
        ).fit(self.parts.train, self.parts.valid)
        self.seconds["sasrec_fit"] = sum(epoch["seconds"] for epoch in model.history_)
        return model

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """MiniLM."""
        return SentenceEncoder.load("minilm-l6", cache=self.options.folder / "vectors")

    @cached_property
    def title_vectors(self) -> FloatArray:
        """MiniLM vectors of all titles, of length 1."""
        return self.encoder.embed(self.data.titles)

    def recent(self, fold: Fold) -> np.ndarray:
        """Return counts of the valid fold, those of calibration users left out where they are judged."""
        valid = self.parts.valid
        counted = np.ones(valid.n, dtype=bool)
        if fold == "valid":
            counted = ~np.isin(np.repeat(np.arange(valid.n_users), valid.lengths), self.users["valid"])
        return np.bincount(valid.items[counted], minlength=valid.n_items)

    def signals(self, fold: Fold, users: IntArray) -> np.ndarray:
        """Return the cheap signals of all items, (n_users, 3, n_items)."""
        history = self.parts.history(fold)
        means = np.stack([self.title_vectors[history.history(int(user))].mean(axis=0) for user in users])
        near = means @ self.title_vectors.T
        ids = self.sasrec.score(users, history)
        recent = np.broadcast_to(np.log1p(self.recent(fold)), near.shape)
        return np.stack([recent, ids, near], axis=1).astype(np.float32)

    @cached_property
    def logit(self) -> np.ndarray:
        """Weights of the cheap signals: a conditional logit of the calibration users' targets."""
        users, targets = self.users["valid"], self.parts.targets("valid")
        values = self.signals("valid", users)
        self.mask(values, "valid", users, -1e9)
        chosen = [targets.history(int(user)) for user in users]
        scale = np.array([1.0, 1.0, 10.0])

        def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
            total, gradient = 0.0, np.zeros(3)
            for row, items in zip(values, chosen, strict=True):
                scores = (weights * scale) @ row
                top = scores.max()
                share = np.exp(scores - top)
                total += float(len(items) * (np.log(share.sum()) + top) - scores[items].sum())
                share /= share.sum()
                gradient += scale * (len(items) * (row @ share) - row[:, items].sum(axis=1))
            return total / users.size, gradient / users.size

        start = np.array([0.5, 0.5, 0.5])
        found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * 3)
        log(f"cheap: weights {np.round(found.x * scale, 3).tolist()}, {found.fun:.3f} nats")
        weights: np.ndarray = found.x * scale
        return weights

    def mask(self, values: np.ndarray, fold: Fold, users: IntArray, low: float) -> None:
        """Give what users have seen a low score, in place."""
        history = self.parts.history(fold)
        for row, user in zip(values, users, strict=True):
            row[..., history.history(int(user))] = low

    def cheap(self, fold: Fold) -> Ranking:
        """Return the first stage's lists."""
        users = self.users[fold]
        scores = np.einsum("s,usi->ui", self.logit, self.signals(fold, users)).astype(np.float32)
        self.mask(scores, fold, users, -np.inf)
        items, values = top_k(scores, LISTED)
        return Ranking(users=users, items=items, scores=values)

    # What the LLM says

    @cached_property
    def base(self) -> LocalLM:
        """The untuned model."""
        return LocalLM.load(self.options.model, dtype="float32", device="cpu")

    @cached_property
    def tuned(self) -> Adapter:
        """The tuned adapter."""
        options, titles = self.options, self.data.titles
        rows = {}
        for fold, n in (("train", options.shots), ("valid", options.valid_shots)):
            source = self.parts.train if fold == "train" else self.parts.history("test")
            every = examples(source, window=SHOWN, min_history=1)
            if fold == "valid":  # users who have rows in the valid fold, but are not judged on it
                mine = (self.parts.valid.lengths[every.users] > 0) & ~np.isin(
                    every.users, self.users["valid"]
                )
                every = every.take(np.flatnonzero(mine))
            order = generator(0, "benchmark", "bigrec", "shots", fold).permutation(len(every))[:n]
            rows[fold] = [
                ([titles[item] for item in every.history(int(row))], titles[int(every.targets[row])])
                for row in np.sort(order)
            ]
        config = GenerativeConfig(
            epochs=options.tuning_epochs,
            layers=options.layers,
            learning_rate=5e-4,
            batch_size=16,
            dropout=0.0,
            max_tokens=320,
        )
        out = (
            options.folder
            / f"{options.data}-adapter-{options.shots}-{options.layers}-{options.tuning_epochs}"
        )
        found = GenerativeTuner(config, prompt=self.prompt).tune(self.base, rows["train"], rows["valid"], out)
        evidence = found.evidence
        self.seconds["tuning_cpu"] = evidence["cpu_seconds"]
        self.tokens["tuning"] = evidence["tokens_trained"] + evidence["tokens_validated"]
        log(f"tuned: {evidence['samples_per_second']:.2f} samples/s, {evidence['validation']}")
        return found

    @cached_property
    def lm(self) -> LocalLM:
        """The tuned model."""
        return LocalLM.load(self.options.model, adapter=self.tuned.path, dtype="float32", device="cpu")

    def stored(
        self, name: str, fold: Fold, compute: Callable[[IntArray], Mapping[str, Any]]
    ) -> dict[str, np.ndarray]:
        """Return arrays over all users of a fold, computed in chunks, each stored when it is there."""
        found, users = [], self.users[fold]
        for start in range(0, users.size, CHUNK):
            some = users[start : start + CHUNK]
            said = {k: value for k, value in asdict(self.prompt).items() if k != "learned"}
            key = digest(self.tuned.sha256, said, some.tolist(), name)
            path = self.options.folder / "said" / f"{self.options.data}-{name}-{fold}-{key}.npz"
            if not path.is_file():
                began = time.process_time()
                arrays = dict(compute(some))
                path.parent.mkdir(parents=True, exist_ok=True)
                aside = path.with_suffix(".tmp.npz")
                np.savez(aside, cpu_s=np.full(some.size, (time.process_time() - began) / some.size), **arrays)
                aside.replace(path)
                log(f"{name}, {fold}: {start + some.size} of {users.size} users")
            with np.load(path, allow_pickle=False) as held:
                found.append({key: held[key] for key in held.files})
        return {key: np.concatenate([part[key] for part in found]) for key in found[0]}

    def written(self, fold: Fold) -> dict[str, np.ndarray]:
        """Return the title that the LLM writes for each user."""
        writer = NearestGrounder(self.lm, self.prompt, self.encoder, titles=self.data.titles)

        def compute(users: IntArray) -> dict[str, Any]:
            texts, usage = writer.write(self.parts.history(fold), users)
            return {"titles": np.array(texts), "tokens": tokens(usage, users)}

        return self.stored("written", fold, compute)

    def embedder(self, name: str) -> Any:
        """Return what embeds titles."""
        if name == "minilm":
            return self.encoder
        return LMEmbedder(self.base, cache=self.options.folder / "vectors")

    def distances(self, fold: Fold, name: str) -> FloatArray:
        """Return how far each item is from each user's written title."""
        grounder = NearestGrounder(self.lm, self.prompt, self.embedder(name), titles=self.data.titles)
        return grounder.distances(self.parts.history(fold), self.written(fold)["titles"].tolist())

    def trie(self, fold: Fold) -> dict[str, np.ndarray]:
        """Return lists of the trie's beams."""

        def compute(users: IntArray) -> dict[str, Any]:
            ranking, usage = self._trie.ground(self.parts.history(fold), users, LISTED)
            return {"items": ranking.items, "scores": ranking.scores, "tokens": tokens(usage, users)}

        return self.stored(f"trie-{self.options.beams}", fold, compute)

    @cached_property
    def _trie(self) -> TrieGrounder:
        return TrieGrounder(self.lm, self.prompt, beams=self.options.beams, titles=self.data.titles)

    def likelihoods(self, fold: Fold, ranking: Ranking) -> dict[str, np.ndarray]:
        """Return log-probabilities of the titles of the first stage's best."""
        depth = self.options.candidates
        row_of = {int(user): row for row, user in enumerate(ranking.users)}
        asker = TitleLikelihood(self.lm, self.prompt)

        def compute(users: IntArray) -> dict[str, Any]:
            head = ranking.take(np.array([row_of[int(user)] for user in users]))
            head = Ranking(users=head.users, items=head.items[:, :depth], scores=head.scores[:, :depth])
            scores, usage = asker.score(self.parts.history(fold), head, self.data.titles)
            return {"scores": scores, "tokens": tokens(usage, users)}

        return self.stored(f"likelihood-{depth}-{digest(ranking.items.tobytes())}", fold, compute)

    def usual(self, ranking: Ranking) -> np.ndarray:
        """Return what the titles of the first stage's best have after an empty history, (n_users, depth)."""
        listed, where = np.unique(ranking.items[:, : self.options.candidates], return_inverse=True)
        end = self.lm.tokenizer.eos_token or ""
        texts = [self.prompt.answer(self.data.titles[item]) + end for item in listed]
        found = []
        for start in range(0, len(texts), 256):
            some = texts[start : start + 256]
            path = self.options.folder / "said" / f"usual-{digest(self.tuned.sha256, some)}.npy"
            if not path.is_file():
                (values,), _ = self.lm.loglikelihood([self.prompt.question([])], [some])
                aside = path.with_suffix(".tmp.npy")
                np.save(aside, values)
                aside.replace(path)
            found.append(np.load(path))
        return np.concatenate(found)[where.reshape(len(ranking.users), -1)]


def digest(*parts: Any) -> str:
    """Return a name for a result from everything that decides it."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def tokens(usage: Any, users: IntArray) -> np.ndarray:
    """Return the mean number of tokens computed a user, (n_users,)."""
    return np.full(users.size, (usage.tokens_in + usage.tokens_out) / users.size)


class Table:
    """Arms, judged on the test users."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.arms: dict[str, Evaluation] = {}
        self.costs: dict[str, dict[str, float]] = {}

    def add(self, arm: str, found: Evaluation, said: Mapping[str, np.ndarray] | None = None) -> None:
        """Keep an arm and print its means."""
        self.arms[arm] = found
        if said is not None:
            self.costs[arm] = {name: float(said[name].mean()) for name in ("cpu_s", "tokens")}
        figures = "  ".join(f"{name} {found.mean(name):.4f}" for name in self.work.metrics)
        costs = "  ".join(f"{name}/user {value:,.3g}" for name, value in self.costs.get(arm, {}).items())
        log(f"{arm:26} {figures}  {costs}")

    def scores(self, arm: str, score: Callable[[IntArray], np.ndarray], said: Any = None) -> None:
        """Judge scores of all items."""
        parts = self.work.parts
        ranks = target_ranks(
            score, self.work.users["test"], parts.targets("test"), seen=parts.history("test")
        )
        self.add(arm, evaluate_ranks(arm, ranks, self.work.metrics), said)

    def lists(self, arm: str, ranking: Ranking, said: Any = None) -> None:
        """Judge finished lists."""
        self.add(arm, self.listed("test", arm, ranking), said)

    def listed(self, fold: Fold, arm: str, ranking: Ranking) -> Evaluation:
        """Return the evaluation of finished lists on a fold."""
        parts = self.work.parts
        return evaluate_ranking(
            arm, ranking, parts.targets(fold), self.work.metrics, seen=parts.history(fold), lists=0
        )


def cheap_arms(table: Table) -> None:
    """Judge what needs no LLM."""
    work = table.work
    everything = np.bincount(work.parts.history("test").items, minlength=work.data.n_items)
    for arm, counts in (("popularity", everything), ("recent popularity", work.recent("test"))):
        table.scores(arm, lambda users, counts=counts: np.tile(counts.astype(np.float32), (users.size, 1)))
    for number, arm in ((1, "sasrec"), (2, "titles")):
        table.scores(arm, lambda users, number=number: work.signals("test", users)[:, number])
    table.scores(
        "cheap",
        lambda users: np.einsum("s,usi->ui", work.logit, work.signals("test", users)).astype(np.float32),
    )


def nearest_arms(table: Table) -> Ranking:
    """Judge BIGRec's grounding, and return its plain lists."""
    work, parts = table.work, table.work.parts
    said = work.written("test")
    plain: Ranking | None = None
    number = {int(user): row for row, user in enumerate(work.users["test"])}

    def score(users: IntArray, values: np.ndarray) -> np.ndarray:
        return -values[[number[int(user)] for user in users]].astype(np.float32)

    embedders = {"nearest (MiniLM)": "minilm"} | ({} if work.options.quick else {"nearest": "states"})
    for arm, name in embedders.items():
        far = {fold: work.distances(fold, name) for fold in ("valid", "test")}
        table.scores(arm, lambda users, values=far["test"]: score(users, values), said)
        unseen = far["test"].copy()  # what a user has seen is no candidate, so not the nearest either
        work.mask(unseen, "test", work.users["test"], np.inf)
        if plain is None:
            items, values = top_k(-unseen, LISTED)
            plain = Ranking(users=work.users["test"], items=items, scores=values)
        for label, weights in (
            ("popularity", {fold: popularity_weights(work.recent(fold)) for fold in far}),
            ("sasrec", {f: score_weights(work.sasrec.score(work.users[f], parts.history(f))) for f in far}),
        ):
            ranks = gamma_ranks(
                far["valid"],
                weights["valid"],
                GAMMAS,
                work.users["valid"],
                parts.targets("valid"),
                seen=parts.history("valid"),
            )
            gamma = choose_gamma(ranks, work.primary).weight
            moved = reweight(unseen, weights["test"], gamma)
            table.scores(f"{arm} x {label}", lambda users, values=moved: score(users, values), said)
            log(f"   gamma {gamma}")
    assert plain is not None
    return plain


def llm_arms(table: Table) -> dict[str, Any]:
    """Judge the LLM's four ways; return what was chosen."""
    work = table.work
    plain = nearest_arms(table)
    trie = work.trie("test")
    beams = Ranking(users=work.users["test"], items=trie["items"], scores=trie["scores"])
    table.lists("trie", filled(beams, plain), trie)
    cheap = {fold: work.cheap(fold) for fold in ("valid", "test")}
    said = {fold: work.likelihoods(fold, ranking) for fold, ranking in cheap.items()}
    usual = {fold: work.usual(ranking) for fold, ranking in cheap.items()}
    fits: dict[float, Any] = {}
    for surprise in SURPRISES:

        def value(
            weight: float, odds: np.ndarray = said["valid"]["scores"] - surprise * usual["valid"]
        ) -> float:
            fused = fuse(cheap["valid"], odds.astype(np.float32), weight, work.options.candidates)
            return table.listed("valid", "fused", fused).mean(work.primary)

        fits[surprise] = choose_weight(WEIGHTS, value)
    alone = max(SURPRISES, key=lambda s: fits[s].values[1.0])
    best = max(SURPRISES, key=lambda s: fits[s].values[fits[s].weight])
    for arm, surprise, weight in (("candidates", alone, 1.0), ("fused", best, fits[best].weight)):
        odds = (said["test"]["scores"] - surprise * usual["test"]).astype(np.float32)
        table.lists(arm, fuse(cheap["test"], odds, weight, work.options.candidates), said["test"])
    chosen = {"surprise_alone": alone, "surprise": best, "weight": fits[best].weight}
    log(f"chosen on calibration users: {chosen}; {fits[best].values}")
    return chosen


def compared(table: Table, pairs: Sequence[tuple[str, str]]) -> dict[str, dict[str, list[float]]]:
    """Return [gap, low, high] of pairs of arms, users paired."""
    found = {}
    for one, other in pairs:
        if one in table.arms and other in table.arms:
            gaps = [difference(table.arms[one], table.arms[other], name) for name in table.work.metrics]
            found[f"{one} - {other}"] = {
                gap.metric: [round(v, 4) for v in (gap.mean, gap.low, gap.high)] for gap in gaps
            }
            log(f"{one} - {other}: {found[f'{one} - {other}']}")
    return found


def log(text: str) -> None:
    """Print with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    work = Work(options)
    table = Table(work)
    cheap_arms(table)
    chosen = llm_arms(table)
    pairs = [
        ("fused", other)
        for other in ("cheap", "recent popularity", "sasrec", "candidates", "trie", "nearest")
    ]
    pairs += [("trie", "nearest"), ("candidates", "cheap"), ("cheap", "sasrec"), ("trie", "popularity")]
    gaps = compared(table, pairs)
    costs = table.costs
    above = [gaps[f"fused - {other}"][work.primary][1] > 0 for other in ("recent popularity", "sasrec")]
    print(
        json.dumps(
            {
                "benchmark": f"bigrec: {options.shots} shots of {options.data}",
                "ours_s": costs["candidates"]["cpu_s"],
                "baseline_s": costs["trie"]["cpu_s"],
                "ratio": costs["trie"]["cpu_s"] / costs["candidates"]["cpu_s"],
                "equal": all(above),
                "rows": {
                    arm: {name: round(found.mean(name), 4) for name in work.metrics}
                    for arm, found in table.arms.items()
                },
                "paired": gaps,
                "cost_per_user": costs,
                "chosen": chosen,
                "adapter_sha256": work.tuned.sha256,
                "seconds": work.seconds,
                "tokens": work.tokens,
                "users": {fold: int(users.size) for fold, users in work.users.items()},
                "wall_s": round(time.perf_counter() - started, 1),
                "threads": options.threads,
                "seed": 0,
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("torch", "transformers", "peft")},
                },
            }
        )
    )


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", choices=list(NOUNS), default="dealrec-games")
    parser.add_argument("--shots", type=int, help="default 1024, quick: 64")
    parser.add_argument("--valid-shots", type=int, help="rows that choose the epoch; default 64, quick: 16")
    parser.add_argument("--users", type=int, help="test users; default 1000, quick: 40")
    parser.add_argument("--calibration", type=int, help="default 300, quick: 40")
    parser.add_argument("--candidates", type=int, help="default 20, quick: 5")
    parser.add_argument("--beams", type=int, help="default 10, quick: 5")
    parser.add_argument("--layers", type=int, default=8, help="top layers that are tuned")
    parser.add_argument("--tuning-epochs", type=int, help="default 2, quick: 1")
    parser.add_argument("--epochs", type=int, help="of SASRec; default 3, quick: 1")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "bigrec")
    options = parser.parse_args()
    for name, small, usual in (
        ("shots", 64, 1024),
        ("valid_shots", 16, 64),
        ("users", 40, 1000),
        ("calibration", 40, 300),
        ("candidates", 5, 20),
        ("beams", 5, 10),
        ("tuning_epochs", 1, 2),
        ("epochs", 1, 3),
    ):
        if getattr(options, name) is None:
            setattr(options, name, small if options.quick else usual)
    return options


if __name__ == "__main__":
    main()
