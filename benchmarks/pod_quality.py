"""Beauty and Sports without leaked ids: what a one-pass student is worth beside SASRec and POD.

    python benchmarks/pod_quality.py --data amazon-beauty
    python benchmarks/pod_quality.py --data amazon-sports
    python benchmarks/pod_quality.py --quick              # 2,000 users, one seed, two epochs: minutes

Item codes are a random permutation, the last item of each user is test, the one before validation, all
items are ranked but for the user's own history. Rows, `--seeds` each where there is chance:

- `popularity`, `markov`;
- `sasrec`: cross-entropy over the whole catalogue; the epoch is chosen on validation;
- `sasrecs`: the mean of the seeds' next-item distributions, the student's teacher;
- `titles`: likeness of MiniLM vectors of the titles alone, and `sasrec, titles`: a share of it on top of
  SASRec, chosen on validation (controls; Beauty only, Sports has no titles);
- `student, words`: `ItemStudent` with the vectors in its item table, and such a share on top;
- `student`: the same, taught by the teacher too;
- `pod, published`: a T5 of random weights trained on the sequential task by `legacy.published` (all faults
  but the leaked numbers), asked by 20 free beams; `pod`: the same network, vectors and tasks repaired, random
  numbers, 20 beams over the trie; `discrete`: as `pod`, but trained and asked in words, without vectors;
  `pod, codes`: as `pod`, trained for longer, items written in codes from training alone, alike at their
  beginnings where items are bought together. No T5 is pretrained, or as large as the paper's.

A learning model's `cpu_ms` is what it takes to rank the catalogue for one user, in batches. Every fit
keeps a checkpoint below `--folder`, so that a killed run goes on. Intervals are over users, paired.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalrec.data.dataset import TITLE
from frugalrec.data.readers import read
from frugalrec.data.splits import split
from frugalrec.distillation.item_student import ItemStudent
from frugalrec.distillation.pod import PodConfig, PodModel, PodTrainer, scratch_t5, write_ids
from frugalrec.distillation.pod.legacy import published
from frugalrec.distillation.soft_targets import SoftTargets, teach
from frugalrec.evaluation.evaluate import evaluate_ranking, evaluate_ranks
from frugalrec.evaluation.ranks import target_ranks
from frugalrec.grounding import TrieGrounder
from frugalrec.grounding.beam_decoding import BeamGrounder
from frugalrec.grounding.item_ids import collaborative, random_numbers
from frugalrec.llm.beam_search import BeamSettings
from frugalrec.llm.encoders import SentenceEncoder
from frugalrec.recommenders import create
from frugalrec.recommenders.batching import training_windows
from frugalrec.recommenders.sequential import SASRec
from frugalrec.recommenders.title_match import TitleMatch, best_share
from frugalrec.types import FloatArray, Ranking

ROOT = Path(__file__).resolve().parent.parent
METRICS = ["hit@5", "ndcg@5", "hit@10", "ndcg@10"]
PUBLISHED = {
    "amazon-beauty": {
        "POD, random ids": (0.0185, 0.0125, 0.0245, 0.0146),
        "SASRec, cross-entropy": (0.0713, 0.0510, 0.0986, 0.0597),
    },
    "amazon-sports": {"TIGER": (0.0264, 0.0181, 0.0400, 0.0225)},
}
RESAMPLES = 2_000
MATCH_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the titles' likeness that validation chooses from."""
PODS = {"pod, published": "published", "pod": "repaired", "discrete": "discrete", "pod, codes": "codes"}
"""Rows of generative models -> how they are trained."""
ARMS = ["words", "taught", *PODS]
"""Rows that can be left out."""


class Work:
    """Data, vectors and fitted models, each made once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        data = Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data"))
        whole = read(data / options.data, name=options.data)
        if options.users:
            chosen = np.random.default_rng(0).permutation(whole.n_users)[: options.users]
            whole = whole.where(np.isin(whole.rows, chosen))
        self.parts = split(whole, "leave-last-out")
        self.users = self.parts.users("test")
        self.history = self.parts.history("test")
        self.fit_s: dict[str, float] = {}

    @cached_property
    def pod_users(self) -> np.ndarray:
        """The test users that generative models are asked for."""
        chosen = np.random.default_rng(0).permutation(self.users.size)[: self.options.pod_users]
        return self.users[np.sort(chosen)]

    @cached_property
    def title_vectors(self) -> FloatArray | None:
        """MiniLM vectors, zeros where an item has no title; None for a catalogue without titles."""
        # Not `titles`: they name an untitled item by its id, and Sports numbers items as they first appear.
        titles = [(title or "").strip() for title in self.parts.train.item_text[TITLE].to_list()]
        named = np.array([bool(title) for title in titles])
        if not named.any():
            return None
        encoder = SentenceEncoder.load("minilm-l6", cache=self.options.vectors)
        vectors = encoder.embed(titles).astype(np.float32)
        vectors[~named] = 0
        return vectors

    def fitted(self, name: str, make: Callable[[Path], SASRec | ItemStudent]) -> Any:
        """Return a model, fitted or resumed from its checkpoint."""
        model = make(self.options.folder / self.options.data / name)
        model.fit(self.parts.train, self.parts.valid)
        self.fit_s[name] = sum(epoch["seconds"] for epoch in model.history_)
        share = f", titles' share {model.match_share_}" if isinstance(model, ItemStudent) else ""
        log(
            f"{name}: {len(model.history_)} epochs, best {model.best_epoch_}, {self.fit_s[name]:.0f} s{share}"
        )
        return model

    def sasrec(self, seed: int) -> SASRec:
        """The id model."""
        options = {"seed": seed, "epochs": self.options.epochs, "threads": self.options.threads}
        return self.fitted(f"sasrec-{seed}", lambda folder: SASRec(checkpoint=folder, **options))

    def student(self, seed: int, soft: SoftTargets | None) -> ItemStudent:
        """The student."""
        options = {
            "seed": seed,
            "epochs": self.options.epochs,
            "threads": self.options.threads,
            "title_vectors": self.title_vectors,
            "prompt_vectors": self.options.prompt_vectors,
            "match_shares": () if self.title_vectors is None else MATCH_SHARES,
            "embedding_size": self.options.width,
        }
        if soft is not None:
            options |= {
                "soft": soft,
                "soft_weight": self.options.soft_weight,
                "temperature": self.options.temperature,
                "dropout": self.options.dropout,
            }
        said = hashlib.sha256(repr(sorted((k, v) for k, v in options.items() if np.isscalar(v))).encode())
        kind = "words" if soft is None else "taught"
        name = f"student-{kind}-{seed}-{said.hexdigest()[:8]}"
        return self.fitted(name, lambda folder: ItemStudent(checkpoint=folder, **options))

    @cached_property
    def teachers(self) -> list[SASRec]:
        """One SASRec a seed."""
        return [self.sasrec(seed) for seed in self.options.seeds]

    @cached_property
    def soft(self) -> SoftTargets:
        """What the teachers say of each training position."""
        windows = training_windows(self.parts.train, self.teachers[0].max_length)
        temperature = self.options.temperature
        state = hashlib.sha256(f"{temperature}".encode())
        for teacher in self.teachers:
            state.update(teacher.network_.items.weight.detach().numpy().tobytes())
        path = self.options.folder / self.options.data / f"soft-{state.hexdigest()[:16]}.npz"
        if not path.is_file():
            found = teach(self.teachers, windows, temperature=temperature)
            aside = path.with_suffix(".tmp.npz")
            np.savez(aside, items=found.items, probabilities=found.probabilities)
            aside.replace(path)
        with np.load(path, allow_pickle=False) as held:
            return SoftTargets(items=held["items"], probabilities=held["probabilities"])

    def pod(self, seed: int, kind: str) -> PodModel:
        """A generative model, trained from random weights, with the network and data of its seed.

        Args:
            seed: Seed.
            kind: `published`, faults and all; `repaired`; `discrete`, the same in words alone; or `codes`,
                repaired with items written in collaborative codes.
        """
        options, train = self.options, self.parts.train
        folder, coded = options.folder / options.data, kind == "codes"
        epochs = options.codes_epochs if coded else options.pod_epochs
        ids = collaborative(train, seed=seed) if coded else random_numbers(train.item_ids, seed=seed)
        writer = write_ids(ids, n_users=train.n_users if kind == "published" else None, seed=seed)
        shape: dict[str, Any] = {"width": options.pod_width, "layers": options.pod_layers}
        base = folder / f"t5{'-codes' * coded}-{options.pod_width}-{options.pod_layers}-{seed}"
        if not base.is_dir():
            shape |= {"feed_forward": 4 * options.pod_width, "symbols": ids.symbols if coded else ()}
            scratch_t5(base.with_suffix(".part"), seed=seed, **shape)
            base.with_suffix(".part").replace(base)
        if kind == "published":
            name = options.data.removeprefix("amazon-")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                config = published(name, weights={"sequential": 1.0}, epochs=epochs, seed=seed)
        else:
            mode: Any = "discrete" if kind == "discrete" else "joint"
            rate = options.codes_rate if coded else options.pod_rate
            config = PodConfig(
                mode=mode, weights={"sequential": 1.0}, epochs=epochs, learning_rate=rate, seed=seed
            )
        out = folder / f"pod-{kind}-{base.name}-{epochs}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model = PodTrainer(config).fit(base, self.parts, writer, out)
        log(f"{out.name}: {model.evidence['validation'][-1:]}")
        return model

    def written(self, seed: int, kind: str) -> dict[str, Any]:
        """Return the per-user metrics of a generative model's lists, NaN if not asked, and costs."""
        model, users = self.pod(seed, kind), self.pod_users
        said = hashlib.sha256(repr([model.manifest["key"], users.tolist()]).encode()).hexdigest()[:16]
        path = model.folder / f"lists-{said}.npz"
        if not path.is_file():
            answers = model.writer.answers
            if kind == "published":
                settings = BeamSettings(beams=20, see_padding=True)
                way: Any = BeamGrounder(model.lm, model.prompt, settings=settings, titles=answers)
            else:
                way = TrieGrounder(model.lm, model.prompt, beams=20, titles=answers)
            began = time.process_time()
            ranking, usage = way.ground(self.history, users, 10)
            spent = time.process_time() - began
            invalid = (
                float(way.outputs.invalid.sum() / way.outputs.written.sum()) if kind == "published" else 0.0
            )
            facts = {"spent": spent, "invalid": invalid, "tokens": usage.tokens_in + usage.tokens_out}
            aside = path.with_suffix(".tmp.npz")
            np.savez(aside, items=ranking.items, scores=ranking.scores, **facts)
            aside.replace(path)
        with np.load(path, allow_pickle=False) as held:
            lists = Ranking(users=users, items=held["items"], scores=held["scores"])
            facts = {name: float(held[name]) for name in ("spent", "invalid", "tokens")}
        targets = self.parts.targets("test")
        found = evaluate_ranking(kind, lists, targets, METRICS, seen=self.history, lists=0)
        log(f"pod {kind}, seed {seed}: {100 * facts['invalid']:.1f} % of texts are no item")
        values = {name: np.full(self.users.size, np.nan) for name in METRICS}
        for name in METRICS:
            values[name][np.isin(self.users, users)] = found.values[name]
        return {
            "values": values,
            "cpu_ms": 1_000 * facts["spent"] / users.size,
            "tokens": facts["tokens"] / users.size,
            "invalid": facts["invalid"],
        }

    def with_titles(self, model: SASRec, titles: TitleMatch) -> dict[str, Any]:
        """Return the per-user metrics of a model with a share of the titles' likeness on top."""
        train, history = self.parts.train, self.history
        share, _ = best_share(
            lambda users: model.score(users, train),
            lambda users: titles.score(users, train),
            self.parts.valid,
            train,
            MATCH_SHARES,
        )
        log(f"{model.name}, seed {model.seed}: titles' share {share}")
        return self.judged(
            "sasrec, titles",
            lambda users: model.score(users, history) + np.float32(share) * titles.score(users, history),
        )

    def judged(self, arm: str, score: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        """Return the per-user metrics of scores of all items, and what scoring took."""
        spent = 0.0

        def timed(users: np.ndarray) -> np.ndarray:
            nonlocal spent
            began = time.process_time()
            found = score(users)
            spent += time.process_time() - began
            return found

        ranks = target_ranks(timed, self.users, self.parts.test, seen=self.history)
        values = evaluate_ranks(arm, ranks, METRICS).values
        return {"values": values, "cpu_ms": 1_000 * spent / self.users.size}


def log(text: str) -> None:
    """Print with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def paired(first: np.ndarray, second: np.ndarray) -> list[float]:
    """Return the mean difference over users known to both and its 95 % interval, by bootstrap."""
    gap = first - second
    gap = gap[~np.isnan(gap)]
    rng = np.random.default_rng(0)
    counts = rng.multinomial(gap.size, np.full(gap.size, 1 / gap.size), size=RESAMPLES)
    return [float(gap.mean()), *np.quantile(counts @ gap / gap.size, [0.025, 0.975]).tolist()]


class Table:
    """Rows and their comparison with SASRec."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.values: dict[str, dict[str, np.ndarray]] = {}

    def add(self, arm: str, runs: list[dict[str, Any]], **facts: Any) -> None:
        """Average the seeds of an arm, user by user, and print it."""
        values = {name: np.mean([run["values"][name] for run in runs], axis=0) for name in METRICS}
        self.values[arm] = values
        row: dict[str, Any] = {"arm": arm, "runs": len(runs), **facts}
        row |= {name: float(np.nanmean(values[name])) for name in METRICS}
        row["by_seed"] = [float(np.nanmean(run["values"]["hit@10"])) for run in runs]
        for name in ("cpu_ms", "tokens", "invalid"):
            if name in runs[0]:
                row[name] = float(np.mean([run[name] for run in runs]))
        if "sasrec" in self.values and arm != "sasrec":
            row["minus_sasrec"] = {n: paired(values[n], self.values["sasrec"][n]) for n in METRICS[2:]}
        self.rows.append(row)
        figures = "  ".join(f"{name} {row[name]:.4f}" for name in METRICS)
        gap = (
            "  minus sasrec hit@10 {:+.4f} ({:+.4f} to {:+.4f})".format(*row["minus_sasrec"]["hit@10"])
            if "minus_sasrec" in row
            else ""
        )
        log(f"{arm:18} {figures}  {row['cpu_ms']:.3f} ms{gap}")


def judge(work: Work, table: Table) -> None:
    """Fit and judge every arm."""
    options, history = work.options, work.history
    for name in ("popularity", "markov"):
        model = create(name).fit(work.parts.train)
        table.add(name, [work.judged(name, lambda users, m=model: m.score(users, history))])

    def scored(model: Any) -> dict[str, Any]:
        return work.judged(model.name, lambda users: model.score(users, history))

    table.add("sasrec", [scored(model) for model in work.teachers])

    def together(users: np.ndarray) -> np.ndarray:
        said = [torch.from_numpy(model.score(users, history)) for model in work.teachers]
        return torch.stack([torch.softmax(one, dim=1) for one in said]).mean(dim=0).numpy()

    table.add("sasrecs", [work.judged("sasrecs", together)])
    if work.title_vectors is not None:
        titles = TitleMatch(vectors=work.title_vectors).fit(work.parts.train)
        table.add("titles", [scored(titles)])
        table.add("sasrec, titles", [work.with_titles(model, titles) for model in work.teachers])
    if work.title_vectors is not None and "words" in options.arms:
        table.add("student, words", [scored(work.student(seed, None)) for seed in options.seeds])
    if "taught" in options.arms:
        table.add("student", [scored(work.student(seed, work.soft)) for seed in options.seeds])
    for arm, kind in PODS.items():
        if arm in options.arms:
            table.add(arm, [work.written(seed, kind) for seed in options.seeds])


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.folder = Path(scratch)
        work, table = Work(options), Table()
        judge(work, table)
    by_name = {row["arm"]: row for row in table.rows}
    print(json.dumps(report(options, work, table.rows, by_name)))


def report(
    options: argparse.Namespace, work: Work, rows: list[Any], by_name: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the last line says."""
    ours, other = by_name.get("student", {}), by_name["sasrec"]
    return {
        "benchmark": "pod_quality",
        "ours_s": ours.get("cpu_ms", 0) / 1_000,
        "baseline_s": other["cpu_ms"] / 1_000,
        "ratio": other["cpu_ms"] / ours["cpu_ms"] if ours else None,
        "equal": None,
        "data": options.data,
        "users": int(work.users.size),
        "items": work.parts.train.n_items,
        "seeds": options.seeds,
        "rows": rows,
        "published (hit@5, ndcg@5, hit@10, ndcg@10)": PUBLISHED[options.data],
        "fit_s": work.fit_s,
        "options": {
            n: getattr(options, n)
            for n in (
                *("epochs", "width", "prompt_vectors", "soft_weight", "temperature", "dropout"),
                *("pod_epochs", "pod_rate", "codes_epochs", "codes_rate"),
                *("pod_width", "pod_layers", "pod_users"),
            )
        },
        "threads": options.threads,
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default="amazon-beauty", choices=list(PUBLISHED))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--epochs", type=int, default=14, help="the most; fewer if validation stops rising")
    parser.add_argument("--width", type=int, default=64, help="of the student")
    parser.add_argument("--prompt-vectors", type=int, default=0)
    parser.add_argument("--soft-weight", type=float, default=0.5)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--dropout", type=float, default=0.5, help="of the taught student")
    parser.add_argument("--pod-epochs", type=int, default=12)
    parser.add_argument("--pod-rate", type=float, default=1e-3, help="learning rate of pod and discrete")
    parser.add_argument("--codes-epochs", type=int, default=30, help="of the row `pod, codes`")
    parser.add_argument("--codes-rate", type=float, default=3e-3)
    parser.add_argument("--pod-width", type=int, default=128)
    parser.add_argument("--pod-layers", type=int, default=2)
    parser.add_argument("--pod-users", type=int, default=None, help="test users of generative rows; all")
    parser.add_argument("--users", type=int, default=None, help="fewer users, drawn at random")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "pod-quality")
    parser.add_argument("--vectors", type=Path, default=ROOT / "runs" / "pod-quality" / "vectors")
    options = parser.parse_args()
    if options.quick:
        options.users, options.epochs, options.seeds = 2_000, 2, [0]
        options.pod_epochs, options.codes_epochs, options.pod_width, options.pod_layers = 1, 1, 32, 1
    return options


if __name__ == "__main__":
    main()
