"""From a finished run to every user of today: a plan under a budget, batch files, and the lists in the end.

A plan uses what the run measured: its first stage, the gain that its calibration users had, and what they
cost. Nothing is asked while planning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from frugalrec.allocation import Evidence, allocate
from frugalrec.config import RunConfig
from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.listwise.windows import WindowReranker
from frugalrec.grounding.reranking import Reranker
from frugalrec.ledger import Usage
from frugalrec.llm.chat import ChatAnswer, ChatRequest, Progress
from frugalrec.llm.models import is_endpoint
from frugalrec.runs import Observer, storage_errors
from frugalrec.stages import allocating
from frugalrec.stages.costs import budget_of, costs_of
from frugalrec.stages.finished import Finished, open_finished
from frugalrec.stages.reranking import endpoint_of, fused, reranker_for
from frugalrec.types import Allocation, IntArray, Ranking

COLUMNS = ("user", "routed", "reason", "history", "expected_gain", "lower_bound", "cost")


def plan(
    folder: Path,
    out: Path,
    *,
    budget: str | None = None,
    policy: str = "gain-per-cost",
    floor: float = 0.0,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Decide which users of today get the LLM, write one line a user, and say what that would cost.

    Args:
        folder: A finished run.
        out: The CSV file to write: user, routed, reason, history, expected gain and its lower bound, cost.
        budget: The most that may be spent; default: the run's.
        policy: Who comes first.
        floor: Share of the budget for the least active tenth.
        observer: Is told of progress.
    """
    done = open_finished(folder, observer)
    section: dict[str, Any] = {"policy": policy, "floor": floor}
    if budget is not None:
        section["budget"] = budget
    config = done.config.model_copy(update={"allocation": done.config.allocation.model_copy(update=section)})
    allocating.check(config)
    done = replace(done, config=config)
    ranking = done.lists(done.first, done.users)
    second = None if done.second is None else done.lists(done.second, done.users)
    signals = allocating.signals_of(config, done.histories, ranking, second)
    measured = allocating.measure_gain(config, done.data, done.first, done.second, done.main)
    estimate = measured.expected(signals)
    costs = costs_of(config, done.data, done.histories, ranking, done.first, [done.main])
    weakness = allocating.weakness_of(config, done.data, done.first)
    chosen = allocate(
        policy,
        ranking.users,
        done.histories.lengths[ranking.users],
        seed=config.seed,
        budget=budget_of(config),
        costs=costs,
        evidence=Evidence(weakness=weakness, signals=signals, gain=estimate),
        floor=floor,
    )
    table = _table(done, chosen, estimate.mean, estimate.lower)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        table.write_csv(out)
    routed = chosen.routed
    return {
        "plan": str(out),
        "policy": chosen.policy,
        "budget": chosen.budget,
        "users": int(routed.size),
        "routed": int(routed.sum()),
        "cost": chosen.spent,
        "cost_of_all": costs.total,
        "unit": costs.currency or costs.unit,
        "metric": config.evaluation.primary,
        "expected_gain": float(estimate.mean[routed].sum() / max(routed.size, 1)),
        "weight": done.weight,
        "proven": measured.proven,
        "evidence": None if measured.model is None else str(measured.model.evidence),
    }


def export_requests(folder: Path, plan_file: Path, out: Path) -> dict[str, Any]:
    """Write the questions about the routed users as batch files that an endpoint's provider takes."""
    from frugalrec.llm.http.batch_files import export_batch

    done = open_finished(folder)
    chat, depth = _endpoint(done), done.config.llm.candidates
    if depth > WindowReranker.window:
        raise ConfigError(
            f"the run re-ranks {depth} candidates in windows of {WindowReranker.window}, each of which "
            f"depends on the answer before, so no batch holds them; use frugalrec allocate rank, or fewer."
        )
    requests = _requests(done, routed_users(done, plan_file))
    exported = export_batch(chat, requests, out)
    cost = chat.dry_run(requests)
    return {
        "files": [str(file) for file in exported.files],
        "requests": exported.requests,
        "left_out": exported.left_out,
        "likely_tokens": cost.likely.tokens_in + cost.likely.tokens_out,
        "likely_money": cost.likely_money,
        "currency": cost.currency,
        "prices_as_of": cost.prices_as_of,
    }


def import_answers(folder: Path, plan_file: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Read a provider's answers into the run, where `rank` finds them; no line is fatal."""
    from dataclasses import asdict

    from frugalrec.llm.http.batch_files import import_batch

    done = open_finished(folder)
    requests = _requests(done, routed_users(done, plan_file))
    return asdict(import_batch(_endpoint(done), list(files), requests))


def rank(
    folder: Path,
    plan_file: Path,
    out: Path,
    *,
    k: int = 10,
    ask: bool = True,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Write the lists of all users: re-ranked for those whom the plan routes, cheap for the others.

    Args:
        folder: A finished run.
        plan_file: The plan.
        out: The JSONL file to write: user, whether the LLM had a say, and the items.
        k: Length of the lists.
        ask: Whether unanswered questions may be asked; without, an endpoint's stored answers have to do.
        observer: Is told of progress.
    """
    done = open_finished(folder, observer)
    routed = routed_users(done, plan_file)
    whole = done.lists(done.first, done.users)
    rows = np.flatnonzero(np.isin(whole.users, routed if done.weight > 0 else []))
    head = whole.take(rows)
    if observer is not None:
        observer.started("ranking")
    found = _reranker(done, ask).rerank(
        done.histories,
        head,
        progress=None if observer is None else lambda at, of: observer.progressed("ranking", at, of),
    )
    items, scores = whole.items.copy(), whole.scores.copy()
    lists = fused(done.config, head, found.scores, done.weight)
    items[rows], scores[rows] = lists.items, lists.scores
    heard = np.zeros(whole.users.size, dtype=bool)
    heard[rows] = np.isfinite(found.scores).any(axis=1) & (done.weight > 0)
    _write(done, Ranking(users=whole.users, items=items, scores=scores), heard, k, out)
    usage = found.usage
    return {
        "lists": str(out),
        "users": int(whole.users.size),
        "routed": int(rows.size),
        "re-ranked": int(heard.sum()),
        "reasons": dict(found.report["reasons"]),
        "tokens": usage.tokens_in + usage.tokens_out,
        "calls": usage.llm_calls,
    }


def routed_users(done: Finished, plan_file: Path) -> IntArray:
    """Return the codes of the users whom a plan routes.

    Raises:
        DataError: If the file is no plan of this run's data.
    """
    try:
        table = pl.read_csv(plan_file, schema_overrides={"user": pl.String})
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"the plan {plan_file} cannot be read: {error}") from None
    if not {"user", "routed"} <= set(table.columns):
        raise DataError(
            f"{plan_file} is no plan: it lacks the columns user and routed; make one with allocate plan."
        )
    names = table.filter(pl.col("routed").cast(pl.String).str.to_lowercase() == "true")["user"].to_list()
    codes = {user: code for code, user in enumerate(done.histories.user_ids.tolist())}
    if unknown := [name for name in names if name not in codes]:
        raise DataError(f"the plan names the user {unknown[0]!r}, whom the run's data do not know.")
    return np.array([codes[name] for name in names], dtype=np.int32)


class Recorder:
    """A chat model that asks nobody and remembers what it would have been asked."""

    def __init__(self, model: str, fingerprint: str) -> None:
        """Store the names that questions are kept under."""
        self.model, self.fingerprint = model, fingerprint
        self.requests: list[ChatRequest] = []

    def chat(
        self, requests: Sequence[ChatRequest], *, progress: Progress | None = None
    ) -> tuple[list[ChatAnswer], Usage]:
        """Remember the requests, and answer none."""
        self.requests += requests
        return [ChatAnswer(text=None, reason="over-budget") for _ in requests], Usage()


def _requests(done: Finished, users: IntArray) -> list[ChatRequest]:
    """Return the questions about some users, in the run's words."""
    chat = _endpoint(done)
    recorder = Recorder(chat.model, chat.fingerprint)
    reranker = reranker_for(done.config, done.histories, lm=None, chat=recorder, cache=None)
    reranker.rerank(done.histories, done.lists(done.first, users))
    return recorder.requests


def _endpoint(done: Finished) -> Any:
    if not is_endpoint(done.config.llm.model):
        raise ConfigError(
            f"batch files are for endpoints, and the run asked {done.config.llm.model} in this process; "
            f"use frugalrec allocate rank."
        )
    return endpoint_of(done.config, done.folder)


def _reranker(done: Finished, ask: bool) -> Reranker:
    config, loaded = done.config, done.main.loaded
    if loaded.model.is_endpoint:
        given = config if ask else _silent(config)
        return reranker_for(given, done.histories, lm=None, chat=endpoint_of(given, done.folder), cache=None)
    if not ask:
        raise ConfigError("the run's model is in this process; there are no stored answers to rank from.")
    cache = done.folder / "plans.sqlite"
    return reranker_for(config, done.histories, lm=loaded.llm, chat=None, cache=cache)


def _silent(config: RunConfig) -> RunConfig:
    """Return the configuration with a cap that lets no call through."""
    return config.model_copy(update={"endpoint": config.endpoint.model_copy(update={"cap": "0 calls"})})


def _table(done: Finished, chosen: Allocation, mean: Any, lower: Any) -> pl.DataFrame:
    columns = {
        "user": done.histories.user_ids[chosen.users],
        "routed": chosen.routed,
        "reason": chosen.reasons,
        "history": done.histories.lengths[chosen.users],
        "expected_gain": mean,
        "lower_bound": lower,
        "cost": chosen.costs,
    }
    return pl.DataFrame(columns).select(COLUMNS)


def _write(done: Finished, lists: Ranking, heard: Any, k: int, out: Path) -> None:
    ids, users = done.histories.item_ids, done.histories.user_ids
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.new")
        with temporary.open("w", encoding="utf-8") as handle:
            for row, user in enumerate(lists.users.tolist()):
                items = [str(ids[item]) for item in lists.items[row, :k].tolist() if item >= 0]
                line = {"user": str(users[user]), "llm": bool(heard[row]), "items": items}
                handle.write(json.dumps(line, ensure_ascii=False) + "\n")
        temporary.replace(out)
