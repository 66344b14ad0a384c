"""Who should get the LLM? What every rule makes of every budget, on MovieLens.

    python benchmarks/allocation.py --data ml-100k            # three seeds; an hour or two on two cores
    python benchmarks/allocation.py --data ml-latest-small
    python benchmarks/allocation.py --data ml-100k --planted  # after the first: a control with a known gain
    python benchmarks/allocation.py --quick                   # a film club of 160 members, one seed: minutes

Each user's interactions are cut by time (80/10/10). A seed is a whole run (`frugalrec.pipeline`), kept and
resumed below `--folder`: cheap models; a LoRA tuned on a few samples, yes/no; the LLM re-ranks the first
stage's top 20 for `--calibration` users on validation, which choose the fusion weight and teach the gain
model, and for *all* test users, so that every rule can be judged afterwards. The gain of a calibration
user is measured at a weight that others chose.

- `policies`: APGR (area under the share of the gain recovered; .5 is a random order), the part of the gain
  recovered at 30 % of the cost, the share of the cost for 95 % of the gain, with intervals over users,
  paired, the same resamples for all; differences of areas to `random` and `weak-quantile`.
- `arms`: NDCG@10 of everybody and of the worst decile (the tenth of users whom calibration served worst;
  the label never sees the test), each less the cheap model, and `gain-per-cost` less each, paired: the LLM
  for all, for 30 % of the cost by three rules, and what needs no LLM: boosted trees, the second recommender,
  popularity, random orders. Here `gain-per-cost` is drawn whether or not calibration proves a gain; whether
  it does (`proven`), so that a run would spend at all, is said for each seed.
- `no gain`: the untuned model under `gain-per-cost`: what is decided where there is nothing to gain.

`--planted` is the positive control: the same runs, lists, costs and rules, but the answers are made up. For
the third of the users with the rarest histories the LLM raises the held-out items, for all others it
answers by chance. No rule is told which third; `gain-per-cost` has to find it from the calibration users.

The last line is JSON: `baseline_s` are the seconds that the LLM took for all test users, `ours_s` the share
of them that falls to the users of `gain-per-cost`, by tokens, and `calibration_s` what the calibration users
took before; `equal` says whether no budget was passed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from frugalrec import config as configuration
from frugalrec.allocation import Budget, Evidence, allocate
from frugalrec.allocation.gain import Gains
from frugalrec.evaluation import controls
from frugalrec.evaluation.compare import average_seeds, difference
from frugalrec.evaluation.evaluate import evaluate_ranking
from frugalrec.evaluation.frontier import Frontier, Trial, frontier
from frugalrec.grounding.fusion import choose_weight, fuse
from frugalrec.pipeline import run_pipeline
from frugalrec.recommenders.second_opinions import hits
from frugalrec.rng import generator
from frugalrec.runs import Run
from frugalrec.stages import allocating
from frugalrec.stages.artefacts import load_arrays, load_json
from frugalrec.stages.costs import costs_of
from frugalrec.stages.finished import Finished, open_finished
from frugalrec.stages.rivals import learn_to_rank
from frugalrec.types import Evaluation, Ranking

ROOT = Path(__file__).resolve().parent.parent
METRIC = "ndcg@10"
RULES = ("gain-per-cost", "uncertainty", "weak-quantile", "fewest-interactions", "random", "oracle")
SHARE = 0.3
"""Of the cost of asking about everybody."""
KNOWLEDGE = 1.0
"""By how many standard deviations planted answers raise what a user will take up."""


@dataclass
class Seed:
    """One finished run: both arms on all test users, and what rules may look at."""

    options: argparse.Namespace
    number: int

    @cached_property
    def folder(self) -> Path:
        """The run's folder."""
        return self.options.folder / f"{self.options.data}-{self.number}"

    @cached_property
    def done(self) -> Finished:
        """The run, computed or found."""
        settings = configured(self.options, self.number)
        report = run_pipeline(configuration.load(None, settings), self.folder)
        log(f"seed {self.number}: {report.verdict[0]}")
        for sentence in report.allocation["decision"] if report.allocation else ():
            log(f"  {sentence}")
        return open_finished(self.folder)

    @cached_property
    def whole(self) -> Ranking:
        """The first stage's lists of all test users."""
        return self.done.first.rankings["test"]

    @cached_property
    def odds(self) -> Any:
        """The LLM's log-odds of their candidates."""
        held = load_arrays(self.folder / "llm" / f"test-{self.done.main.name}" / "odds.npz")
        assert np.array_equal(held["users"], self.whole.users)
        return held["odds"]

    @cached_property
    def fused(self) -> Ranking:
        """The lists with the LLM for everybody."""
        return fuse(self.whole, self.odds, self.done.weight, self.done.config.llm.candidates)

    @cached_property
    def costs(self) -> Any:
        """Estimated tokens of each test user."""
        done = self.done
        return costs_of(
            done.config, done.data, done.data.split.history("test"), self.whole, done.first, [done.main]
        )

    @cached_property
    def measured(self) -> allocating.Measured:
        """What calibration users say of the gain."""
        done = self.done
        return allocating.measure_gain(done.config, done.data, done.first, done.second, done.main)

    @cached_property
    def evidence(self) -> Evidence:
        """What rules look at; the outcomes are for the oracle alone."""
        done = self.done
        second = None if done.second is None else done.second.rankings["test"]
        signals = allocating.signals_of(done.config, done.data.split.history("test"), self.whole, second)
        measured = self.measured
        model, signs = measured.model, "proven" if measured.proven else "not proven"
        log(f"seed {self.number}: {'no model' if model is None else model.evidence} A gain is {signs}.")
        # Rules are drawn over all budgets whether or not a gain is proven; a run spends only where it is.
        gain = measured.expected(signals) if model is None else model.predict(signals)
        return Evidence(
            weakness=allocating.weakness_of(done.config, done.data, done.first),
            signals=signals,
            gain=gain,
            gains=Gains.between(self.judged(self.fused), self.judged(self.whole), METRIC, "test"),
        )

    def judged(self, lists: Ranking) -> Evaluation:
        """Return the metric of some lists of the test users."""
        split = self.done.data.split
        return evaluate_ranking("", lists, split.targets("test"), [METRIC], seen=split.history("test"))

    def chosen(self, rule: str, budget: Budget) -> Any:
        """Return who gets the LLM by a rule."""
        lengths = self.done.data.split.history("test").lengths[self.whole.users]
        return allocate(
            rule,
            self.whole.users,
            lengths,
            seed=self.number,
            budget=budget,
            costs=self.costs,
            evidence=self.evidence,
        )

    def for_routed(self, lists: Ranking, routed: Any) -> Ranking:
        """Return the first stage's lists, with others for those who are routed."""
        rows = np.asarray(routed)[:, None]
        m = min(lists.k, self.whole.k)
        return Ranking(
            users=self.whole.users,
            items=np.where(rows, lists.items[:, :m], self.whole.items[:, :m]),
            scores=self.whole.scores[:, :m],
        )

    @cached_property
    def names(self) -> Any:
        """The users' own ids: codes are another permutation in each seed."""
        return self.done.histories.user_ids[self.whole.users]

    def by_name(self, values: Any) -> Any:
        """Return values of the test users in the order of their ids."""
        return np.asarray(values)[np.argsort(self.names)]

    def evaluation(self, lists: Ranking) -> Evaluation:
        """Return the metric under numbers that are the same in all seeds."""
        values = self.judged(lists).values[METRIC]
        users = np.arange(values.size, dtype=np.int32)
        return Evaluation(arm="", users=users, values={METRIC: self.by_name(values)})

    @cached_property
    def arms(self) -> dict[str, Ranking]:
        """Every way to serve the test users."""
        done, split = self.done, self.done.data.split
        depth = done.config.llm.candidates
        routed = self.chosen("gain-per-cost", Budget(kind="share", amount=SHARE)).routed
        at_random = self.chosen("random", Budget(kind="share", amount=SHARE)).routed
        weak = self.chosen("weak-quantile", Budget(kind="share", amount=SHARE)).routed
        shuffled = controls.random_permutation(self.whole, depth, self.number)
        found = {
            "cheap": self.whole,
            "LLM alone, all": fuse(self.whole, self.odds, 1.0, depth),
            "fused, all": self.fused,
            "fused, gain-per-cost 30 %": self.for_routed(self.fused, routed),
            "fused, random 30 %": self.for_routed(self.fused, at_random),
            "fused, weak-quantile 30 %": self.for_routed(self.fused, weak),
            "random order, gain-per-cost 30 %": self.for_routed(shuffled, routed),
            "random order, all": shuffled,
            "popularity order, all": controls.popularity_rerank(
                self.whole, split.history("test").item_counts, depth
            ),
        }
        if done.second is not None:
            second = done.second.rankings["test"]
            found[f"{done.second.name}, gain-per-cost 30 %"] = self.for_routed(second, routed)
            found[f"{done.second.name}, all"] = second
        with Run(self.folder) as run:
            rival = learn_to_rank(run, done.config, done.data, self._arms(run), done.first)
        if rival is not None:
            found["boosted trees, all"] = rival.ranking
        return found

    def _arms(self, run: Run) -> list[Any]:
        from frugalrec.stages import cheap

        config, data = self.done.config, self.done.data
        return [cheap.fit_and_evaluate(run, config, data, name) for name in cheap.applicable(config, data)]

    @cached_property
    def worst(self) -> Any:
        """The tenth of the test users whom calibration served worst, by id; it never saw the test."""
        label = self.evidence.weakness
        assert label is not None
        shrunk = np.full(int(max(label.users.max(), self.whole.users.max())) + 1, np.inf)
        shrunk[label.users] = label.shrunk
        values = shrunk[self.whole.users]
        return self.by_name(values <= np.quantile(values[np.isfinite(values)], 0.1))


class Planted(Seed):
    """A seed with made-up answers: where there is a gain, and for whom, is known."""

    @cached_property
    def done(self) -> Finished:
        """The run, with made-up answers of the calibration users."""
        done = super().done
        head = done.first.rankings["valid"].take(done.main.rows)
        odds = self._answers(done, "valid", head)
        split, depth = done.data.split, done.config.llm.candidates

        def value(weight: float) -> float:
            lists = fuse(head, odds, weight, depth)
            history = split.history("valid")
            return evaluate_ranking("", lists, split.targets("valid"), [METRIC], seen=history).mean(METRIC)

        choice = choose_weight(done.config.llm.weights, value)
        return replace(done, main=replace(done.main, odds=odds, choice=choice))

    @cached_property
    def odds(self) -> Any:
        """The made-up answers of the test users."""
        return self._answers(self.done, "test", self.whole)

    def _answers(self, done: Finished, fold: Any, lists: Ranking) -> Any:
        """Return noise, and for some users the truth on top."""
        split, depth = done.data.split, done.config.llm.candidates
        signals = allocating.signals_of(done.config, split.history(fold), lists, None)
        rarity = signals.column("history_popularity")
        knows = rarity <= np.quantile(rarity, 1 / 3)
        found = hits(lists, split.targets(fold))[:, :depth]
        noise = generator(self.number, "planted", fold).standard_normal(found.shape)
        return (noise + KNOWLEDGE * (found & knows[:, None])).astype(np.float32)


def configured(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the settings of a run."""
    data = Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data"))
    source = options.data if options.data == "film-club" else str(data / options.data)
    return {
        "seed": seed,
        "data.source": source,
        "data.split": "user-time",
        "data.members": options.members,
        "recommenders.names": ["popularity", "recent-popularity", "markov", "item-knn", "ease", "als", "bpr"],
        "selection.budget": options.samples,
        "selection.window": options.window,
        "tuning.epochs": options.epochs,
        "llm.model": options.model,
        "llm.noun": "film",
        "llm.zero_shot": False,
        "llm.candidates": options.candidates,
        "llm.calibration_users": options.calibration,
        "llm.weights": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0],
        "allocation.policy": "all",
        "allocation.budget": "unlimited",
    }


def policies(seeds: Sequence[Seed]) -> tuple[Frontier, list[dict[str, Any]]]:
    """Return the curves of all rules, means over seeds, and their rows."""
    trials = []
    for seed in seeds:
        cheap, llm = (seed.by_name(seed.judged(x).values[METRIC]) for x in (seed.whole, seed.fused))
        users = np.arange(cheap.size, dtype=np.int32)
        trials.append(Trial(users=users, cheap=cheap, llm=llm, costs=seed.by_name(seed.costs.values)))
    unlimited = Budget(kind="unlimited")
    scores = {
        rule: [
            # Without an order: the mean over all orders, a straight line.
            np.zeros(seed.whole.users.size)
            if rule == "random"
            else seed.by_name(seed.chosen(rule, unlimited).scores.astype(np.float64))
            for seed in seeds
        ]
        for rule in RULES
    }
    found = frontier(trials, scores, seed=0)
    log(str(found))
    rows = []
    for rule, curve in found.curves.items():
        at = curve.recovered[SHARE]
        row: dict[str, Any] = {
            "policy": rule,
            "apgr": ends(curve.apgr),
            "area": ends(curve.area),
            "recovered_at_30": ends(at),
            "cost_for_95": curve.needed.get(0.95),
            "can_spend": curve.spent,
        }
        for other in ("random", "weak-quantile"):
            if other != rule:
                row[f"area_minus_{other}"] = ends(found.difference(rule, other, "area"))
        rows.append(row)
        log(
            f"{rule:20} APGR {text(row['apgr'])}  at 30 % {text(row['recovered_at_30'])}  "
            f"95 % of the gain at {row['cost_for_95']}  area - random {text(row.get('area_minus_random'))}  "
            f"area - weak-quantile {text(row.get('area_minus_weak-quantile'))}"
        )
    return found, rows


def arms(seeds: Sequence[Seed]) -> list[dict[str, Any]]:
    """Return NDCG@10 of each arm, of everybody and of the worst decile, less the cheap model's."""
    runs = [{name: seed.evaluation(lists) for name, lists in seed.arms.items()} for seed in seeds]
    names = [name for name in runs[0] if all(name in run for run in runs)]
    means = {name: average_seeds([run[name] for run in runs]) for name in names}
    # Who is in the worst decile differs a little among seeds; a user counts as often as labelled.
    shares = np.mean([seed.worst for seed in seeds], axis=0)
    rows = []
    ours = means["fused, gain-per-cost 30 %"]
    for name in names:
        gap = difference(means[name], means["cheap"], METRIC)
        tenth = weighted(means[name], means["cheap"], shares)
        row = {"arm": name, METRIC: means[name].mean(METRIC), "minus_cheap": ends(gap), **tenth}
        row["gain_per_cost_minus_it"] = ends(difference(ours, means[name], METRIC))
        row["gain_per_cost_minus_it_worst"] = weighted(ours, means[name], shares)["worst_minus_cheap"]
        rows.append(row)
        log(
            f"{name:36} {means[name].mean(METRIC):.4f}  less cheap {text(ends(gap))}  worst decile "
            f"{tenth['worst']:.4f}, less cheap {text(tenth['worst_minus_cheap'])} "
            f"({tenth['worst_percent']:+.1f} %); gain-per-cost less it "
            f"{text(row['gain_per_cost_minus_it'])}, worst decile {text(row['gain_per_cost_minus_it_worst'])}"
        )
    return rows


def weighted(arm: Evaluation, cheap: Evaluation, shares: Any, resamples: int = 2000) -> dict[str, Any]:
    """Return the worst decile's mean, and its paired difference to cheap with an interval over users."""
    a, b = arm.values[METRIC], cheap.values[METRIC]
    known = ~(np.isnan(a) | np.isnan(b)) & (shares > 0)
    a, b, w = a[known], b[known], shares[known]
    drawn = np.random.default_rng(0).multinomial(a.size, np.full(a.size, 1 / a.size), size=resamples) * w
    gaps = drawn @ (a - b) / drawn.sum(axis=1)
    mean, base = float(np.average(a, weights=w)), float(np.average(b, weights=w))
    gap = mean - base
    low, high = np.quantile(gaps, (0.025, 0.975)).tolist()
    percent = 100 * gap / base if base else float("nan")
    return {"worst": mean, "worst_minus_cheap": [gap, low, high], "worst_percent": percent}


def without_gain(options: argparse.Namespace) -> dict[str, Any]:
    """Run the untuned model under gain-per-cost, and return what was decided and spent."""
    settings = configured(options, 0) | {
        "tuning.enabled": False,
        "llm.calibration_users": options.untuned,
        "allocation.policy": "gain-per-cost",
        "allocation.budget": f"{100 * SHARE:g}%",
    }
    folder = options.folder / f"{options.data}-untuned"
    report = run_pipeline(configuration.load(None, settings), folder)
    facts = report.allocation or {}
    spent = load_json(folder / "llm" / "test-zero-shot" / "stage.json")["usage"]
    for sentence in facts.get("decision", ()):
        log(f"untuned: {sentence}")
    return {
        "routed": facts.get("routed"),
        "users": facts.get("users"),
        "effect": facts.get("effect"),
        "test_tokens": spent["tokens_in"] + spent["tokens_out"],
        "decision": list(facts.get("decision", ())),
    }


def ends(found: Any) -> list[float]:
    """Return mean and interval."""
    return [found.mean, found.low, found.high]


def text(found: Sequence[float] | None) -> str:
    """Return mean and interval for reading."""
    return "–" if not found else f"{found[0]:+.4f} ({found[1]:+.4f} to {found[2]:+.4f})"


def finite(content: Any) -> Any:
    """Return content with None for numbers that JSON does not know."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content


def log(said: str) -> None:
    """Print with the time."""
    print(f"[{time.strftime('%H:%M:%S')}] {said}", flush=True)


def main() -> None:
    """Measure and print."""
    options = arguments()
    data = Path(os.environ.get("FRUGALREC_DATA", ROOT / "../shared/data"))
    if options.data != "film-club" and not (data / options.data).is_dir():
        print(json.dumps({"benchmark": "allocation", "skipped": f"no {options.data} in {data}"}))
        return
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    kind = Planted if options.planted else Seed
    seeds = [kind(options, number) for number in options.seeds]
    found, rows = policies(seeds)
    table = arms(seeds)
    seconds: Mapping[str, float] = {"ours": 0.0, "all": 0.0, "calibration": 0.0}
    kept = True
    for seed in seeds:
        usage = load_json(seed.folder / "llm" / f"test-{seed.done.main.name}" / "stage.json")["usage"]
        chosen = seed.chosen("gain-per-cost", Budget(kind="share", amount=SHARE))
        kept &= chosen.spent <= SHARE * seed.costs.total * (1 + 1e-9)
        seconds = {
            "ours": seconds["ours"] + usage["wall_s"] * chosen.spent / seed.costs.total,
            "all": seconds["all"] + usage["wall_s"],
            "calibration": seconds["calibration"] + seed.done.main.stage.usage.wall_s,
        }
    print(
        json.dumps(
            finite(
                {
                    "benchmark": f"allocation: {options.data}{', planted answers' * options.planted}",
                    "ours_s": seconds["ours"],
                    "baseline_s": seconds["all"],
                    "ratio": seconds["all"] / seconds["ours"] if seconds["ours"] else None,
                    "equal": bool(kept),
                    "calibration_s": seconds["calibration"],
                    "proven": [seed.measured.proven for seed in seeds],
                    "worst_users": [int(seed.worst.sum()) for seed in seeds],
                    "users": found.n,
                    "seeds": options.seeds,
                    "gap": ends(found.gap),
                    "weights": [seed.done.weight for seed in seeds],
                    "first_stage": [seed.done.first.name for seed in seeds],
                    "policies": rows,
                    "arms": table,
                    "no_gain": without_gain(options) if options.untuned and not options.planted else None,
                    "versions": {
                        "python": platform.python_version(),
                        **{name: version(name) for name in ("numpy", "torch", "transformers", "peft")},
                    },
                }
            )
        )
    )


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a film club of 160 members, one seed")
    parser.add_argument("--planted", action="store_true", help="made-up answers: a control with a known gain")
    parser.add_argument("--data", default="ml-100k", help="ml-100k, ml-latest-small or film-club")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=128, help="training samples of the LLM")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--window", type=int, default=10, help="history items in a prompt")
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--calibration", type=int, default=400, help="calibration users")
    parser.add_argument("--untuned", type=int, default=100, help="calibration users of the untuned run")
    parser.add_argument("--members", type=int, default=600, help="of the film club")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs/allocation"))
    options = parser.parse_args()
    if options.quick:
        options.data, options.seeds, options.members = "film-club", [0], 160
        options.samples, options.epochs, options.window = 16, 1, 4
        options.candidates, options.calibration, options.untuned = 8, 40, 20
        options.folder = options.folder.with_name(f"{options.folder.name}-quick")
    return options


if __name__ == "__main__":
    main()
