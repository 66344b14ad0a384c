"""A worded prompt becomes ten vectors: what is lost, and what is saved with a prompt cache and without.

    python benchmarks/distil.py                # about fifty minutes of one core
    python benchmarks/distil.py --quick        # about seven

The teacher is the embedded LLM, tuned on some yes/no rows of TALLRec's movie split (MovieLens 100K) in
TALLRec's own words: 85 or so of its 227 tokens are the same for every user. The student is the same
network, frozen, under `--vectors` learned vectors and the bare lists; it learns from unlabelled prompts.
Rows of the table, judged on the same test rows:

- `worded`: the teacher under its words;
- `bare`: the teacher under the bare lists, without any vector (control);
- `vectors, untrained`: the mean embeddings of the words (control); `vectors`: the same, distilled;
- `prefix, untrained`: as many positions of the teacher's keys and values, pooled (control); `prefix`: the
  same, distilled; here only the words that all prompts begin with are dropped;
- `vectors, LoRA`: as `vectors`, but the teacher's LoRA matrices are tuned on too.

AUC is over rows, its intervals over users (16), and differences to `worded` are paired. Milliseconds are
CPU time of one row alone, the median over `--timed` rows: reading the whole prompt, and behind what all
prompts begin with (words or vectors), read once for all users. Scores and students are kept in `--cache`,
so that a killed run goes on where it was. `baseline_s` and `ours_s` are one row with words and with vectors,
without prompt cache; `equal` says whether cached and whole prompts give the same answers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frugalrec.data.readers.tallrec import PointwiseRows, movie_users, parse_prompts, rebuild_movie_split
from frugalrec.distillation.lessons import yes_no_queries
from frugalrec.distillation.options import DistilOptions
from frugalrec.distillation.saving import load_student
from frugalrec.distillation.starting import start
from frugalrec.distillation.student import Distilled, distil_yes_no
from frugalrec.distillation.wording import beginning
from frugalrec.evaluation.pointwise import auc_interval
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.kv_prefix import KVPrefix, add_kv_prefix
from frugalrec.llm.local import LocalLM
from frugalrec.llm.models import sha256_of
from frugalrec.llm.preferences import PreferencePrompt
from frugalrec.rng import generator
from frugalrec.tuning import PointwiseConfig, PointwiseTuner, TrainingRow
from frugalrec.tuning.rows import few_shots

DATA = Path(os.environ.get("FRUGALREC_DATA", Path(__file__).parent / "../../shared/data"))
ARMS = {"vectors": "vectors", "prefix-kv": "prefix", "lora": "vectors, LoRA"}
"""Modes of distillation, and what their rows are called."""
TIMED = ("worded", "vectors", "prefix")
"""Rows whose tokens and milliseconds are measured; LoRA matrices change neither."""
CHUNK = 50
"""Test rows that are scored and stored at a time."""


class Bench:
    """Data, teacher, students and scores, each computed once and kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        split = rebuild_movie_split(options.data / "ml-100k")
        self.folds = {name: parse_prompts(json.loads(content)) for name, content in split.items()}
        kept = np.linspace(0, len(self.folds["test"]) - 1, options.test_rows).astype(int)
        self.test = self.folds["test"].take(kept)
        self.users = movie_users(options.data / "ml-100k")["test"][kept]
        self.prompt = PreferencePrompt(noun="movie", style=options.style)
        self.adapter = self._tuned()

    @property
    def key(self) -> str:
        """A hash of all options that decide scores, and of the teacher's weights."""
        free = ("quick", "timed", "threads", "data", "cache", "modes", "over")
        said = {name: value for name, value in vars(self.options).items() if name not in free}
        versions = [version(name) for name in ("torch", "transformers", "peft")]
        weights = hashes(self.adapter)
        return hashlib.sha256(repr([sorted(said.items()), versions, weights]).encode()).hexdigest()[:12]

    def _tuned(self) -> Path:
        """Tune the teacher in words; return its adapter."""
        options, train, valid = self.options, self.folds["train"], self.folds["valid"]
        rows = train.take(few_shots(train.labels, options.shots, seed=options.seed, balanced=False))
        judged = valid.take(few_shots(valid.labels, options.shots // 2, seed=options.seed, balanced=False))
        config = PointwiseConfig(
            epochs=options.tuning_epochs, batch_size=8, dropout=0.0, seed=options.seed, max_tokens=1024
        )
        tuner = PointwiseTuner(config, answers=self.prompt.answers)
        base = LocalLM.load(options.model, dtype="float32", device="cpu")
        out = options.cache / f"teacher-{options.style}-{options.shots}-{options.seed}"
        adapter = tuner.tune(base, written(self.prompt, rows), written(self.prompt, judged), out)
        log(f"teacher: {adapter.evidence['cpu_seconds']:.0f} CPU s, {adapter.evidence['validation']}")
        return out

    def teacher(self) -> LocalLM:
        """Load the teacher."""
        return LocalLM.load(self.options.model, adapter=self.adapter, dtype="float32", device="cpu")

    def student(self, mode: str) -> Distilled:
        """Distil the worded prompt from unlabelled rows that the teacher was not tuned on."""
        options, train, valid = self.options, self.folds["train"], self.folds["valid"]
        over = "" if options.over == "vocabulary" else f"-{options.over}"
        order = generator(options.seed, "few-shots").permutation(len(train))  # the first ones are its shots
        rows = train.take(order[options.shots : options.shots + options.prompts])
        judged = valid.take(np.linspace(0, len(valid) - 1, options.prompts // 4).astype(int))
        found = distil_yes_no(
            self.teacher(),
            self.prompt,
            lambda prompt: written(prompt, rows),
            options.cache / f"{mode}-{options.style}-{options.vectors}{over}-{options.seed}",
            options=self.recipe(mode),
            validation=lambda prompt: written(prompt, judged),
            cache=options.cache / "teachers",
        )
        facts = found.evidence
        log(
            f"{mode}: KL {facts['kl_before']:.4f} -> {facts['kl_after']:.4f} nats, "
            f"{facts['cpu_seconds']:.0f} CPU s, {facts['validation']}"
        )
        return found

    def recipe(self, mode: str) -> DistilOptions:
        """Return the options of a mode."""
        options = self.options
        return DistilOptions(
            mode=mode,  # type: ignore[arg-type]
            n_vectors=options.vectors,
            epochs=options.epochs,
            learning_rate=options.prefix_rate if mode == "prefix-kv" else options.rate,
            over=options.over,
            seed=options.seed,
        )

    def untrained(self, mode: str) -> tuple[LocalLM, PreferencePrompt]:
        """Return the student at its start."""
        lm, recipe = self.teacher(), self.recipe(mode)
        some = written(self.prompt, self.folds["train"].take(np.arange(16)))
        start(lm, self.prompt, yes_no_queries(lm, some, self.prompt.answers), recipe)
        return lm, self.prompt if mode == "prefix-kv" else replace(self.prompt, learned=recipe.learned)

    def scores(
        self, arm: str, load: Callable[[], tuple[LocalLM, PreferencePrompt]], made: Path | None
    ) -> np.ndarray:
        """Return the log-odds of Yes on the test rows, in chunks that are stored.

        Args:
            arm: Name.
            load: Loads the model and its prompt.
            made: A student's folder: a student that was distilled anew is scored anew.
        """
        held: list[tuple[LocalLM, PreferencePrompt]] = []
        own = "" if made is None else hashlib.sha256(repr(hashes(made)).encode()).hexdigest()[:8]
        found = []
        for first in range(0, len(self.test), CHUNK):
            name = f"{arm}-{self.key}{own}-{len(self.test)}-{first}.npy"
            path = self.options.cache / "scores" / name.replace(" ", "-").replace(",", "")
            if not path.is_file():
                if not held:
                    held.append(load())
                rows = self.test.take(np.arange(first, min(first + CHUNK, len(self.test))))
                path.parent.mkdir(parents=True, exist_ok=True)
                aside = path.with_name(f".{path.name}")
                np.save(aside, odds(*held[0], rows))
                aside.replace(path)
            found.append(np.load(path, allow_pickle=False))
        return np.concatenate(found)

    def judged(self, arm: str, scores: np.ndarray, worded: np.ndarray) -> dict[str, Any]:
        """Return and print AUC x 100, the paired difference to the worded prompt, and agreement with it."""
        labels = self.test.labels
        own = auc_interval(scores, labels, self.users)
        gap = auc_interval(scores, labels, self.users, minus=worded)
        row = {
            "arm": arm,
            "auc": [100 * own.mean, 100 * own.low, 100 * own.high],
            "minus_worded": [100 * gap.mean, 100 * gap.low, 100 * gap.high],
            "correlation": float(np.corrcoef(scores, worded)[0, 1]),
        }
        log(
            "{:20} AUC {:5.2f} ({:.2f} to {:.2f})".format(arm, *row["auc"])
            + "  minus worded {:+.2f} ({:+.2f} to {:+.2f})".format(*row["minus_worded"])
            + f"  correlation of log-odds {row['correlation']:.3f}"
        )
        return row


def written(prompt: PreferencePrompt, rows: PointwiseRows) -> list[TrainingRow]:
    """Return rows as tuner and distillation take them."""
    lists = zip(rows.liked, rows.disliked, rows.targets, rows.labels, strict=True)
    return [
        TrainingRow(prompt=prompt.ask(liked, disliked, target).text, label=bool(label), group=number)
        for number, (liked, disliked, target, label) in enumerate(lists)
    ]


def odds(lm: LocalLM, prompt: PreferencePrompt, rows: PointwiseRows) -> np.ndarray:
    """Return the log-odds of Yes."""
    texts = tuple(row.prompt for row in written(prompt, rows))
    (pairs,), _ = lm.choose([PromptGroup(prefix="", suffixes=texts)], prompt.answers)
    return pairs[:, 0] - pairs[:, 1]


def timed(loads: Mapping[str, Load], rows: PointwiseRows) -> dict[str, dict[str, Any]]:
    """Return tokens, CPU milliseconds and log-odds of single rows, read whole and behind a cache.

    Every row is read in all ways before the next one, so that a slow minute of the machine slows all of them.
    """
    ways: dict[tuple[str, str], tuple[LocalLM, PreferencePrompt]] = {}
    for arm, load in loads.items():
        ways[arm, "whole"] = lm, prompt = load()
        if lm.known:  # a prefix of keys and values is a cache by nature
            ways[arm, "cached"] = ways.pop((arm, "whole"))
            continue
        ways[arm, "cached"] = lm, prompt = load()
        texts = yes_no_queries(lm, written(prompt, rows), prompt.answers)
        add_kv_prefix(lm, KVPrefix.read(lm, beginning(lm, prompt, texts)))
    spent: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    found: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    for lm, prompt in ways.values():
        odds(lm, prompt, rows.take(np.arange(1)))
    for row in range(len(rows)):
        one = rows.take(np.array([row]))
        for way, (lm, prompt) in ways.items():
            began = time.process_time()
            found[way].append(float(odds(lm, prompt, one)[0]))
            spent[way].append(time.process_time() - began)
    costs: dict[str, dict[str, Any]] = {arm: {} for arm in loads}
    for (arm, kind), (lm, prompt) in ways.items():
        asked = [row.prompt for row in written(prompt, rows)]
        costs[arm][kind] = {
            "tokens": float(np.mean([len(ids) for ids in lm.encode(asked)])),
            "ms": 1_000 * float(np.median(spent[arm, kind])),
            "odds": found[arm, kind],
        }
        log(f"{arm}, {kind}: {costs[arm][kind]['tokens']:.1f} tokens, {costs[arm][kind]['ms']:.0f} ms a row")
    return costs


Load = Callable[[], tuple[LocalLM, PreferencePrompt]]


def hashes(folder: Path) -> list[str]:
    """Return the hash of each file of weights."""
    return [sha256_of(path) for path in sorted(folder.glob("*.safetensors"))]


def arms(bench: Bench) -> Iterator[tuple[str, Load, Path | None]]:
    """Yield the rows of the table, each with what loads its model and prompt, and a student's folder."""
    yield "worded", lambda: (bench.teacher(), bench.prompt), None
    bare = replace(bench.prompt, learned=("", "\n"))
    yield "bare", lambda: (bench.teacher(), bare), None
    for mode in bench.options.modes:
        name = ARMS[mode]
        if mode != "lora":  # begins with the vectors and the teacher's matrices, as `vectors` does
            yield f"{name}, untrained", lambda mode=mode: bench.untrained(mode), None
        found = bench.student(mode)

        def load(found: Distilled = found) -> tuple[LocalLM, Any]:
            return load_student(found.path, bench.options.model, dtype="float32", device="cpu")

        yield name, load, found.path


def main() -> None:
    """Measure and print."""
    options = arguments()
    torch.set_num_threads(options.threads)
    if not (options.data / "ml-100k").is_dir():
        print(json.dumps({"benchmark": "distil", "skipped": f"no ml-100k in {options.data}"}))
        return
    bench = Bench(options)
    some = bench.test.take(np.linspace(0, len(bench.test) - 1, options.timed).astype(int))
    table, loads, worded = [], {}, None
    for arm, load, made in arms(bench):
        scores = bench.scores(arm, load, made)
        worded = scores if worded is None else worded
        table.append(bench.judged(arm, scores, worded))
        if arm in TIMED:
            loads[arm] = load
    costs = timed(loads, some)
    read = {way: {kind: cost.pop("odds") for kind, cost in kinds.items()} for way, kinds in costs.items()}
    gap = max(
        float(np.abs(np.subtract(kinds["whole"], kinds["cached"])).max())
        for kinds in read.values()
        if "whole" in kinds
    )
    ours = costs.get("vectors", costs["worded"])
    facts = {mode: bench.student(mode).evidence for mode in options.modes}
    wanted = ["kl_before", "kl_after", "cpu_seconds", "rows", "validation"]
    wanted += ["tokens_worded", "tokens_worded_cached", "tokens_learned", "tokens_learned_cached"]
    print(
        json.dumps(
            {
                "benchmark": "distil",
                "ours_s": ours["whole"]["ms"] / 1_000,
                "baseline_s": costs["worded"]["whole"]["ms"] / 1_000,
                "ratio": costs["worded"]["whole"]["ms"] / ours["whole"]["ms"],
                "ratio_with_prompt_cache": costs["worded"]["cached"]["ms"] / ours["cached"]["ms"],
                "equal": gap < 1e-2,
                "gap": gap,
                "costs": costs,
                "rows": table,
                "distillation": {mode: {n: found[n] for n in wanted} for mode, found in facts.items()},
                **{
                    n: getattr(options, n)
                    for n in ("model", "style", "shots", "over", "vectors", "seed", "threads")
                },
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("numpy", "torch", "transformers", "peft")},
                },
            }
        )
    )


def log(text: str) -> None:
    """Print with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="16 shots, 16 prompts, 40 test rows")
    parser.add_argument("--style", default="alpaca", choices=["alpaca", "chat", "plain"])
    parser.add_argument("--shots", type=int, default=64)
    parser.add_argument("--tuning-epochs", type=int, default=2)
    parser.add_argument("--vectors", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=96, help="unlabelled prompts to distil from")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--over", default="vocabulary", choices=["vocabulary", "answers"])
    parser.add_argument("--modes", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--prefix-rate", type=float, default=0.02)
    parser.add_argument("--test-rows", type=int, default=200)
    parser.add_argument("--timed", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m", help="embedded, or a folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--cache", type=Path, default=Path("runs/distil"))
    options = parser.parse_args()
    if options.quick:
        options.shots, options.tuning_epochs, options.prompts, options.epochs = 16, 1, 16, 2
        options.test_rows, options.timed = 40, 6
        options.cache = options.cache.with_name(f"{options.cache.name}-quick")
    return options


if __name__ == "__main__":
    main()
