"""TALLRec's table: will a user like a title? 16, 64 and 256 shots, with what needs no LLM beside it.

    python benchmarks/tallrec.py                       # movie and book, three seeds; hours on two cores
    python benchmarks/tallrec.py --domains movie
    python benchmarks/tallrec.py --quick               # one cell, 200 test rows: minutes

Movie is TALLRec's published split, rebuilt from MovieLens 100K (8,000 train, 1,000 valid, 1,000 test
rows). Of book the published train file cannot be had: a seeded draw of 1,427 of the 2,427 valid rows
serves as train, the other 1,000 as valid, and so says the table. Rows:

- controls: `history` (share of liked titles in the row itself), `item` (like-rate of the target among
  all train rows), `history + item`; `leniency`, a Rasch model of both that reads titles (MiniLM);
- the paper's baselines, trained on the shots (the epoch chosen on `--valid-shots` rows): GRU4Rec,
  Caser, SASRec, DROS on ids, GRU-BERT and DROS-BERT on frozen MiniLM vectors; `sasrec, all rows`;
- the LLM untuned: asked in TALLRec's words (`zero-shot`), behind four answered questions
  (`in-context`), and with a rated list (`rated, untuned`);
- `LLM`: LoRA in the top layers, two-way cross-entropy on rated lists, shots drawn plainly; the epoch is
  chosen on `--valid-shots` validation rows, which count as labels;
- `stack`: a logistic regression on validation rows over cheap signals, and `stack + LLM` over these and
  the LLM's log-odds (at `--stack-shots`: reading the validation rows costs as much as 1,000 test rows);
- `LLM, other domain` and `LLM, both`: tuned on the other domain's shots, or on both.

AUC is pooled over rows; uAUC is within users and weighted by rows (a book row is a user of its own, so
it has none). Intervals are over users: movie has 16 test users, so they are wide. Every score is stored
in `--cache`, so a killed run goes on where it was. Layers below the tuned ones (`--layers`) read a prompt
once for all adapters. `ratio` is tokens of TALLRec's own prompts over those of rated lists, and
`baseline_s` follows from it; `equal` says whether scores are those of `LocalLM.choose` on the first rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalrec.data.likes import item_like_rate
from frugalrec.data.readers.tallrec import (
    PointwiseRows,
    history_like_rate,
    movie_users,
    parse_prompts,
    read_prompts,
    rebuild_movie_split,
)
from frugalrec.evaluation.pointwise import auc_interval, user_auc_interval
from frugalrec.grounding.stacking import Stacker
from frugalrec.llm.adapters import WEIGHTS
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.encoders import SentenceEncoder
from frugalrec.llm.frozen_layers import FrozenLayers, TokenStates
from frugalrec.llm.local import LocalLM
from frugalrec.llm.models import sha256_of
from frugalrec.llm.preferences import PreferencePrompt
from frugalrec.llm.queries import answer_queries
from frugalrec.recommenders.feedback import FeedbackModel
from frugalrec.recommenders.feedback_config import FEEDBACK_MODELS, FeedbackConfig
from frugalrec.recommenders.leniency import Leniency
from frugalrec.rng import generator
from frugalrec.tuning import PointwiseConfig, PointwiseTuner, TrainingRow
from frugalrec.tuning.rows import few_shots

DATA = Path(os.environ.get("FRUGALREC_DATA", Path(__file__).parent / "../../shared/data"))
PUBLISHED = {
    "movie": {16: 67.24, 64: 67.48, 256: 71.98},
    "book": {16: 56.36, 64: 60.39, 256: 64.38},
}
"""TALLRec on LLaMA-7B, AUC x 100 (arXiv 2305.00447)."""
BOOK_TRAIN = 1_427
POOL = 400
"""Validation rows, spread evenly, out of which those that choose the epoch are drawn."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """The rows of one domain."""

    name: str
    rows: Mapping[str, PointwiseRows]
    """train, valid, test; and pool, the valid rows that may choose the epoch of the LLM."""
    users: Mapping[str, np.ndarray] | None
    """User of each row, by fold; None where each row is a user of its own."""

    @classmethod
    def read(cls, name: str, data: Path, limits: Mapping[str, int | None]) -> Domain:
        """Read a domain, with at most so many rows of some folds, spread evenly."""
        if name == "movie":
            split = rebuild_movie_split(data / "ml-100k")
            rows = {fold: parse_prompts(json.loads(content)) for fold, content in split.items()}
            users: dict[str, np.ndarray] | None = dict(movie_users(data / "ml-100k"))
        else:
            valid = read_prompts(data / "tallrec-book" / "valid.json")
            order = generator(0, "benchmark", "tallrec", "book").permutation(len(valid))
            rows = {
                "train": valid.take(order[:BOOK_TRAIN]),
                "valid": valid.take(order[BOOK_TRAIN:]),
                "test": read_prompts(data / "tallrec-book" / "test.json"),
            }
            users = None
        kept = spread(len(rows["valid"]), POOL)
        rows["pool"] = rows["valid"].take(kept)
        for fold, limit in limits.items():
            kept = spread(len(rows[fold]), limit)
            rows[fold] = rows[fold].take(kept)
            if users is not None:
                users[fold] = users[fold][kept]
        return cls(name=name, rows=rows, users=users)

    def judged(self, scores: np.ndarray) -> dict[str, Any]:
        """Return AUC x 100 with its interval, and uAUC, of test scores (n,) or (n_seeds, n)."""
        labels, users = self.rows["test"].labels, None if self.users is None else self.users["test"]
        found = auc_interval(scores, labels, users)
        facts: dict[str, Any] = {name: 100 * getattr(found, name) for name in ("mean", "low", "high")}
        if users is not None:
            within = user_auc_interval(scores, labels, users)
            facts["uauc"] = [100 * getattr(within, name) for name in ("mean", "low", "high")]
        return facts

    def gap(self, scores: np.ndarray, others: np.ndarray) -> list[float]:
        """Return the difference of mean AUCs x 100 on test and its interval, paired over users."""
        users = None if self.users is None else self.users["test"]
        found = auc_interval(scores, self.rows["test"].labels, users, minus=others)
        return [100 * found.mean, 100 * found.low, 100 * found.high]


def spread(n: int, limit: int | None) -> np.ndarray:
    """Return at most so many of n row numbers, spread evenly."""
    return np.linspace(0, n - 1, min(limit or n, n)).astype(int)


class Store:
    """Arrays by name, on disk as soon as they are computed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """Return what is stored under a name, or compute and store it."""
        path = self.folder / f"{name}.npz"
        if not path.is_file():
            started, cpu = time.perf_counter(), time.process_time()
            arrays = dict(compute())
            arrays["wall_s"] = time.perf_counter() - started
            arrays["cpu_s"] = time.process_time() - cpu
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}.npz")
            np.savez(aside, **arrays)
            aside.replace(path)
        with np.load(path, allow_pickle=False) as held:
            return {key: held[key] for key in held.files}


class Reader:
    """The LLM: untuned and tuned answers on whole folds, read by the frozen layers once."""

    COSTS = ("train_cpu_s", "train_tokens", "samples_per_s", "test_cpu_s")

    def __init__(self, options: argparse.Namespace, store: Store) -> None:
        self.options, self.store = options, store
        self.spent_s = 0.0
        """Seconds of scoring."""
        self.gap: float | None = None
        """Largest difference of shared reading to `LocalLM.choose`."""
        self._states: dict[str, TokenStates] = {}

    @cached_property
    def base(self) -> LocalLM:
        """The untuned model."""
        return LocalLM.load(self.options.model, dtype="float32", device="cpu")

    def prompt(self, domain: Domain, style: str = "rated") -> PreferencePrompt:
        """Return how the LLM is asked."""
        return PreferencePrompt(noun=domain.name, style=style)  # type: ignore[arg-type]

    def answers(
        self, domain: Domain, name: str, adapter: Path | None, folds: Sequence[str] = ("test",)
    ) -> dict[str, np.ndarray]:
        """Return the log-odds of the rows of some folds, the last of them test, with what test cost."""
        found: dict[str, np.ndarray] = {}
        for fold in folds:
            self.states(domain, fold)

            def compute(fold: str = fold) -> dict[str, Any]:
                lm = self._loaded(adapter)
                began = time.process_time()
                odds = self.odds(lm, domain, fold)
                spent = time.process_time() - began
                return {"odds": odds, "odds_cpu_s": spent, "gap": self.check(lm, domain, fold, odds)}

            said = self.store.get(
                f"{domain.name}/odds-{self.options.layers}-{name}-{fold}-{len(domain.rows[fold])}", compute
            )
            found |= {fold: said["odds"], "cpu_s": said["odds_cpu_s"] + self._reading(domain, fold)}
            self.spent_s += float(said["wall_s"])
            self.gap = max(self.gap or 0.0, float(said["gap"]))
        return found

    def _loaded(self, adapter: Path | None) -> LocalLM:
        if adapter is None:
            return self.base
        lm = LocalLM.load(self.options.model, adapter=adapter, dtype="float32", device="cpu")
        lm.network.merge_adapter()  # into this copy's weights: a tenth faster
        return lm

    def tuned_answers(
        self,
        domain: Domain,
        sources: Sequence[Domain],
        shots: int,
        seed: int,
        folds: Sequence[str] = ("test",),
    ) -> dict[str, np.ndarray]:
        """Tune on shots of some domains, and return the log-odds of a domain's rows, with costs."""
        name = "+".join(sorted(source.name for source in sources))
        out = self.tuned(name, sources, shots, seed)
        sha256 = sha256_of(out / WEIGHTS)
        found = self.answers(domain, f"{name}-{shots}-{seed}-{sha256[:12]}", out, folds)
        evidence = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
        costs = {
            "train_cpu_s": evidence["cpu_seconds"],
            "train_tokens": evidence["tokens_trained"] + evidence["tokens_validated"],
            "samples_per_s": evidence["samples_per_second"],
            "test_cpu_s": float(found["cpu_s"]),
        }
        return {**found, "sha256": np.array(sha256), **{k: np.array(value) for k, value in costs.items()}}

    def _reading(self, domain: Domain, fold: str) -> float:
        """Return the CPU seconds that the frozen layers took to read a fold's prompts."""
        return float(self.store.get(self._name(domain, fold), dict)["cpu_s"])

    def _name(self, domain: Domain, fold: str) -> str:
        model = self.base.fingerprint[:12]
        return f"{domain.name}/states-{model}-{fold}-{len(domain.rows[fold])}-{self.options.layers}"

    def states(self, domain: Domain, fold: str) -> TokenStates:
        """Return what enters the tuned layers for every prompt of a fold."""
        name = self._name(domain, fold)
        if name not in self._states:
            tokens = self.base.encode(asked(self.prompt(domain), domain.rows[fold]))

            def compute() -> dict[str, Any]:
                read = FrozenLayers(self.base.network, self.options.layers).read(tokens)
                return {"values": read.values, "indptr": read.indptr}

            held = self.store.get(name, compute)
            cut = FrozenLayers(self.base.network, self.options.layers).cut
            self._states[name] = TokenStates(values=held["values"], indptr=held["indptr"], cut=cut)
            self.spent_s += float(held["wall_s"])
            log(f"{name}: {held['indptr'][-1]:,} tokens read in {float(held['wall_s']):.0f} s")
        return self._states[name]

    def odds(self, lm: LocalLM, domain: Domain, fold: str) -> np.ndarray:
        """Return the log-odds of Yes against No of every row of a fold."""
        states = self.states(domain, fold)
        network = lm.network if lm.adapter is None else lm.network.get_base_model()
        layers = FrozenLayers(network, self.options.layers)
        ((query, *_),) = answer_queries(
            lm,
            [PromptGroup(prefix="", suffixes=tuple(asked(self.prompt(domain), domain.rows[fold])[:1]))],
            self.prompt(domain).answers,
        )
        weights = network.get_output_embeddings().weight[torch.from_numpy(query.targets[0])].detach()
        odds = np.zeros(len(states))
        with torch.no_grad():
            order = np.argsort(-states.lengths, kind="stable")
            for rows in np.array_split(order, -(-order.size // 8)):
                last = layers.last(*states.padded(rows.tolist())) @ weights.T
                odds[rows] = (last[:, 0] - last[:, 1]).numpy()
        return odds

    def check(self, lm: LocalLM, domain: Domain, fold: str, odds: np.ndarray) -> float:
        """Return the largest difference to `LocalLM.choose` on a fold's first eight rows."""
        texts = asked(self.prompt(domain), domain.rows[fold])[:8]
        (pairs,), _ = lm.choose([PromptGroup(prefix="", suffixes=tuple(texts))], self.prompt(domain).answers)
        return float(np.abs(pairs[:, 0] - pairs[:, 1] - odds[:8]).max())

    def untuned(self, domain: Domain, style: str, examples: Sequence[int] = ()) -> dict[str, Any]:
        """Return the untuned model's log-odds on test rows, in a style, behind answered questions."""
        prompt, rows, train = self.prompt(domain, style), domain.rows["test"], domain.rows["train"]
        shown = ""
        for row in examples:
            question = prompt.ask(train.liked[row], train.disliked[row], train.targets[row]).text
            shown += f"{question}{prompt.answers[0 if train.labels[row] else 1]}\n\n"
        group = PromptGroup(prefix=shown, suffixes=tuple(asked(prompt, rows)))
        (pairs,), usage = self.base.choose([group], prompt.answers)
        return {"test": pairs[:, 0] - pairs[:, 1], "tokens": usage.tokens_in}

    def tuned(self, name: str, domains: Sequence[Domain], shots: int, seed: int) -> Path:
        """Tune on some shots of each domain; return the adapter's folder."""
        options = self.options
        views, epochs = views_and_epochs(shots)
        domains = sorted(domains, key=lambda domain: domain.name)
        rows = [row for domain in domains for row in self.training_rows(domain, shots, seed, views)]
        judged = [row for domain in domains for row in self.validation_rows(domain, seed)]
        config = PointwiseConfig(
            epochs=epochs,
            layers=options.layers,
            learning_rate=options.learning_rate,
            batch_size=8,
            dropout=0.0,
            seed=seed,
            max_tokens=1024,
        )
        out = self.store.folder / "adapters" / f"{name}-{shots}-{seed}-{options.layers}"
        tuner = PointwiseTuner(config, answers=self.prompt(domains[0]).answers)
        adapter = tuner.tune(self.base, rows, judged, out)
        log(
            f"{name}, {shots} shots, seed {seed}: {adapter.evidence['cpu_seconds']:.0f} CPU s, "
            f"{adapter.evidence['samples_per_second']:.2f} samples/s, {adapter.evidence['validation']}"
        )
        return out

    def saving(self, domains: Sequence[Domain]) -> float:
        """Return tokens of TALLRec's own prompts over those of rated lists, test rows."""
        sizes = {"alpaca": 0, "rated": 0}
        for domain in domains:
            for style in sizes:
                texts = asked(self.prompt(domain, style), domain.rows["test"])
                sizes[style] += sum(map(len, self.base.encode(texts)))
        return sizes["alpaca"] / sizes["rated"]

    def training_rows(self, domain: Domain, shots: int, seed: int, views: int) -> list[TrainingRow]:
        """Return the shots, each in several interleavings of its two lists."""
        rows = domain.rows["train"].take(
            few_shots(domain.rows["train"].labels, shots, seed=seed, balanced=False)
        )
        return [row for view in range(views) for row in training_rows(self.prompt(domain), rows, view)]

    def validation_rows(self, domain: Domain, seed: int) -> list[TrainingRow]:
        """Return the rows that choose the epoch."""
        valid = domain.rows["pool"]
        rows = valid.take(few_shots(valid.labels, self.options.valid_shots, seed=seed, balanced=False))
        return training_rows(self.prompt(domain), rows, 0)


def asked(prompt: PreferencePrompt, rows: PointwiseRows) -> list[str]:
    """Return the prompts of all rows."""
    lists = zip(rows.liked, rows.disliked, rows.targets, strict=True)
    return [prompt.ask(liked, disliked, target).text for liked, disliked, target in lists]


def training_rows(prompt: PreferencePrompt, rows: PointwiseRows, view: int) -> list[TrainingRow]:
    """Return rows as the tuner takes them."""
    found = []
    for number, (liked, disliked, target) in enumerate(
        zip(rows.liked, rows.disliked, rows.targets, strict=True)
    ):
        question = prompt.ask(liked, disliked, target, view=view)
        label = bool(rows.labels[number])
        found.append(TrainingRow(prompt=question.text, label=label, group=number, known=question.known))
    return found


def views_and_epochs(shots: int) -> tuple[int, int]:
    """Return how many interleavings a shot is shown in, and how often all are: fewer, the more shots."""
    return (4, 2) if shots <= 16 else (2, 2) if shots <= 64 else (1, 2)


class Cheap:
    """What needs no LLM: counts, the paper's baselines, and the signals of the stack."""

    def __init__(self, store: Store, options: argparse.Namespace) -> None:
        self.store, self.threads, self.valid_shots = store, options.threads, options.valid_shots

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The text encoder of the text baselines."""
        return SentenceEncoder.load("minilm-l6", cache=self.store.folder / "vectors")

    def controls(self, domain: Domain) -> dict[str, np.ndarray]:
        """Return the scores of test rows that come from counting."""
        history = history_like_rate(domain.rows["test"])
        item = item_like_rate(domain.rows["train"], domain.rows["test"])
        leniency = self.leniency(domain)["test"]
        return {"history": history, "item": item, "history + item": history + item, "leniency": leniency}

    def leniency(self, domain: Domain) -> dict[str, np.ndarray]:
        """Return log-odds of a Rasch model of users and titles, fitted on all train rows."""

        def compute() -> dict[str, Any]:
            model = Leniency(embedder=self.encoder).fit(domain.rows["train"])
            return {fold: model.score(domain.rows[fold]) for fold in ("valid", "test")}

        sizes = "-".join(str(len(domain.rows[fold])) for fold in ("valid", "test"))
        return self.store.get(f"{domain.name}/leniency-{sizes}", compute)

    def baseline(self, domain: Domain, name: str, shots: int | None, seed: int) -> dict[str, np.ndarray]:
        """Return a baseline's logits of valid and test rows, trained on some shots or on all rows."""

        def compute() -> dict[str, Any]:
            train, began = domain.rows["train"], time.process_time()
            if shots is not None:
                train = train.take(few_shots(train.labels, shots, seed=seed, balanced=False))
            config = FeedbackConfig(seed=seed, threads=self.threads)
            held_out = domain.rows["pool"].take(np.arange(POOL))
            if shots is None:
                config = replace(config, batch_size=128, patience=3)
            else:
                few = few_shots(held_out.labels, self.valid_shots, seed=seed, balanced=False)
                held_out = held_out.take(few)
            embedder = self.encoder if FEEDBACK_MODELS[name].text else None
            model = FeedbackModel(name, config, embedder).fit(train, held_out)
            fitted = time.process_time()
            found: dict[str, Any] = {fold: model.score(domain.rows[fold]) for fold in ("valid", "test")}
            return {**found, "fit_cpu_s": fitted - began, "score_cpu_s": time.process_time() - fitted}

        sizes = "-".join(str(len(domain.rows[fold])) for fold in ("valid", "test"))
        chosen = POOL if shots is None else self.valid_shots
        return self.store.get(f"{domain.name}/{name}-{shots or 'all'}-{seed}-{chosen}-{sizes}", compute)

    def signals(self, domain: Domain, fold: str) -> dict[str, np.ndarray]:
        """Return the cheap signals of a fold's rows, as log-odds."""
        rows, train = domain.rows[fold], domain.rows["train"]
        sasrec = [self.baseline(domain, "sasrec", None, seed)[fold] for seed in range(3)]
        return {
            "history like-rate": logit(history_like_rate(rows, smoothing=1.0)),
            "item like-rate": logit(item_like_rate(train, rows)),
            "SASRec": np.mean(sasrec, axis=0),
            "leniency": self.leniency(domain)[fold],
        }


def logit(rate: np.ndarray) -> np.ndarray:
    """Return log-odds."""
    return np.log(rate) - np.log1p(-rate)


def log(text: str) -> None:
    """Print with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


class Table:
    """The arms of one domain, judged."""

    def __init__(self, domain: Domain, options: argparse.Namespace) -> None:
        self.domain, self.options = domain, options
        self.rows: list[dict[str, Any]] = []
        self.history = history_like_rate(domain.rows["test"])

    def add(self, arm: str, scores: np.ndarray, *, shots: int | None = None, **cost: Any) -> None:
        """Judge an arm's test scores, (n,) or (n_seeds, n), and print them."""
        row = {"domain": self.domain.name, "arm": arm, "shots": shots, **self.domain.judged(scores)}
        row["minus_history"] = self.domain.gap(scores, self.history)
        if shots is not None:
            row["published"] = PUBLISHED[self.domain.name].get(shots)
        row |= cost
        self.rows.append(row)
        low, high = row["minus_history"][1:]
        uauc = "  uAUC {:.2f} ({:.2f} to {:.2f})".format(*row["uauc"]) if "uauc" in row else ""
        costs = "  ".join(f"{name} {value:,.4g}" for name, value in cost.items() if value is not None)
        log(
            f"{self.domain.name:5} {arm:20} {shots or '':>4} AUC {row['mean']:5.2f} "
            f"({row['low']:.2f} to {row['high']:.2f}){uauc}  minus history {row['minus_history'][0]:+.2f} "
            f"({low:+.2f} to {high:+.2f})  {costs}"
        )


def without_llm(table: Table, cheap: Cheap) -> None:
    """Judge controls, baselines and the stack of cheap signals."""
    domain, options = table.domain, table.options
    for name, scores in cheap.controls(domain).items():
        table.add(name, scores)
    for name in FEEDBACK_MODELS:
        for shots in options.shots:
            runs = [cheap.baseline(domain, name, shots, seed) for seed in options.seeds]
            scores = np.stack([run["test"] for run in runs])
            cost = {key: float(np.mean([run[key] for run in runs])) for key in ("fit_cpu_s", "score_cpu_s")}
            table.add(name, scores, shots=shots, **cost)
    runs = [cheap.baseline(domain, "sasrec", None, seed) for seed in options.seeds]
    table.add("sasrec, all rows", np.stack([run["test"] for run in runs]))
    table.add("stack", stacked(domain, cheap, {}, {}))


def stacked(
    domain: Domain, cheap: Cheap, valid: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the stack's test scores, fitted on validation rows, with further signals beside the cheap."""
    users = None if domain.users is None else domain.users["valid"]
    labels = domain.rows["valid"].labels
    found = Stacker().fit({**cheap.signals(domain, "valid"), **valid}, labels, users)
    log(f"{domain.name} stack: { {name: round(w, 3) for name, w in found.coefficients.items()} }")
    return found.score({**cheap.signals(domain, "test"), **test})


def untuned(table: Table, reader: Reader) -> None:
    """Judge the LLM before tuning: in TALLRec's words, behind four answered questions, on rated lists."""
    domain = table.domain
    examples = few_shots(domain.rows["train"].labels, 4, seed=0, balanced=True).tolist()
    for name, style, shown in (("LLM, zero-shot", "alpaca", []), ("LLM, in context", "plain", examples)):
        found = reader.store.get(
            f"{domain.name}/untuned-{reader.base.fingerprint[:12]}-{style}-{len(domain.rows['test'])}",
            lambda style=style, shown=shown: reader.untuned(domain, style, shown),
        )
        table.add(name, found["test"], tokens=float(found["tokens"]), cpu_s=float(found["cpu_s"]))
    found = reader.answers(domain, f"untuned-{reader.base.fingerprint[:12]}", None)
    table.add("LLM, rated list", found["test"], cpu_s=float(found["cpu_s"]))


def tuned(table: Table, reader: Reader, cheap: Cheap, domains: Mapping[str, Domain]) -> None:
    """Judge the tuned LLM: alone, stacked, and tuned on the other domain or on both."""
    domain, options = table.domain, table.options
    for shots in options.shots:
        stack = shots in options.stack_shots
        folds = ("valid", "test") if stack else ("test",)
        runs = [reader.tuned_answers(domain, [domain], shots, seed, folds) for seed in options.seeds]
        scores = np.stack([run["test"] for run in runs])
        cost = {name: float(np.mean([run[name] for run in runs])) for name in reader.COSTS}
        table.add("LLM", scores, shots=shots, **cost)
        table.rows[-1]["sha256"] = [str(run["sha256"]) for run in runs]
        if stack:
            both = [stacked(domain, cheap, {"LLM": r["valid"]}, {"LLM": r["test"]}) for r in runs]
            table.add("stack + LLM", np.stack(both), shots=shots)
    for shots in options.cross_shots if len(domains) > 1 else ():
        other = [held for name, held in domains.items() if name != domain.name]
        for arm, sources in (("LLM, other domain", other), ("LLM, both domains", [domain, *other])):
            runs = [reader.tuned_answers(domain, sources, shots, seed) for seed in options.seeds]
            table.add(arm, np.stack([run["test"] for run in runs]), shots=shots)


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(options.threads)
    if not (options.data / "tallrec-movie").is_dir():
        print(json.dumps({"benchmark": "tallrec", "skipped": f"no tallrec-movie in {options.data}"}))
        return
    store = Store(options.cache)
    reader, cheap = Reader(options, store), Cheap(store, options)
    limits = {"valid": options.valid_rows, "test": options.test_rows}
    domains = {name: Domain.read(name, options.data, limits) for name in options.domains}
    rows = []
    for domain in domains.values():
        table = Table(domain, options)
        if "cheap" in options.arms:
            without_llm(table, cheap)
        if "untuned" in options.arms:
            untuned(table, reader)
        if "tuned" in options.arms:
            tuned(table, reader, cheap, domains)
        rows += table.rows
    above = [row["mean"] > row["published"] for row in rows if row["arm"] == "LLM" and row["published"]]
    ratio = reader.saving(list(domains.values())) if reader.spent_s else None
    print(
        json.dumps(
            {
                "benchmark": "tallrec",
                "ours_s": reader.spent_s,
                "baseline_s": reader.spent_s * ratio if ratio else None,
                "ratio": ratio,
                "equal": reader.gap is None or reader.gap < 0.05,
                "gap": reader.gap,
                "above_published": f"{sum(above)} of {len(above)} cells",
                "rows": rows,
                "layers": options.layers,
                "valid_shots": options.valid_shots,
                "threads": options.threads,
                "model": options.model,
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("numpy", "torch", "transformers", "peft")},
                },
            }
        )
    )


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="movie, 16 shots, one seed, 200 test rows")
    parser.add_argument("--domains", nargs="+", default=["movie", "book"], choices=["movie", "book"])
    parser.add_argument("--shots", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--cross-shots", nargs="*", type=int, default=[64])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["cheap", "untuned", "tuned"])
    parser.add_argument("--layers", type=int, default=30, help="top layers that are tuned")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--valid-shots", type=int, default=32, help="labelled rows that choose the epoch")
    parser.add_argument("--test-rows", type=int, default=None, help="fewer test rows, spread evenly")
    parser.add_argument("--valid-rows", type=int, default=1000, help="validation rows of the stack")
    parser.add_argument("--stack-shots", nargs="*", type=int, default=[256], help="shots of `stack + LLM`")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=Path("runs/tallrec"))
    options = parser.parse_args()
    if options.quick:
        options.domains, options.shots, options.seeds, options.cross_shots = ["movie"], [16], [0], []
        options.test_rows, options.stack_shots = options.test_rows or 200, []
        options.cache = options.cache.with_name(f"{options.cache.name}-quick")
    return options


if __name__ == "__main__":
    main()
