"""How a run asks about candidates: the style, the model behind it, and where answers are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frugalrec.allocation.costs import Budget
from frugalrec.config import RunConfig
from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.grounding.fusion import fuse
from frugalrec.grounding.listwise.prompt import LONGEST_HISTORY, ListwisePrompt
from frugalrec.grounding.listwise.windows import WindowReranker
from frugalrec.grounding.promotion import cap_promotions
from frugalrec.grounding.questions import known_titles
from frugalrec.grounding.reranking import Reranker
from frugalrec.grounding.styles import make_reranker
from frugalrec.llm.models import is_endpoint
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.stages.data import noun_of
from frugalrec.stages.llm import prompt_for, prompt_key
from frugalrec.types import PAD, DoubleArray, FloatArray, Ranking

if TYPE_CHECKING:
    from frugalrec.llm.base import LanguageModel
    from frugalrec.llm.chat import ChatModel
    from frugalrec.llm.http import HttpChat, SpendCap

JOURNAL = "endpoint.sqlite"
"""In a run's folder: the answers of an endpoint and what they cost, kept whatever options change."""


def style_of(config: RunConfig) -> str:
    """Return how candidates are asked about.

    Raises:
        ConfigError: If an endpoint, which only answers, is to give probabilities.
    """
    style = config.llm.style
    if not is_endpoint(config.llm.model):
        return "pointwise" if style == "auto" else style
    if style not in ("auto", "listwise"):
        raise ConfigError(
            f"llm.style {style} reads probabilities, and an endpoint only answers; use listwise."
        )
    return "listwise"


def reranker_for(
    config: RunConfig,
    dataset: Dataset,
    *,
    lm: LanguageModel | None,
    chat: ChatModel | None,
    cache: Path | None,
) -> Reranker:
    """Return what scores candidates in the run's style.

    Args:
        config: The run's configuration.
        dataset: Its data; names what an item is called.
        lm: The model, if it is in this process.
        chat: What answers otherwise, such as an endpoint; it keeps its own answers.
        cache: A file of earlier answers of `lm`.
    """
    style = style_of(config)
    options: dict[str, Any] = {}
    if style == "listwise":
        options = {"replicas": config.llm.replicas, "promotion_cap": config.llm.promotion_cap}
    return make_reranker(
        style,
        lm=lm,
        chat=chat,
        prompt=_prompt(config, dataset, style),
        depth=config.llm.candidates,
        cache=cache,
        **options,
    )


def endpoint_of(config: RunConfig, folder: Path | None) -> HttpChat:
    """Return the endpoint that the run asks; answers and spending are kept in the run's folder.

    Args:
        config: The run's configuration.
        folder: The run's folder; None forgets answers, and so cannot keep a cap.
    """
    from frugalrec.llm.http import CallPolicy, Endpoint, HttpChat

    section = config.endpoint
    address, _, name = config.llm.model.partition("#")
    if not name:
        raise ConfigError(f"{address} does not say which model: write {address}#name-of-model.")
    return HttpChat(
        Endpoint(base_url=address, model=name, profile=section.profile, api_key_env=section.api_key_env),
        policy=CallPolicy(
            concurrency=section.concurrency,
            requests_per_minute=section.requests_per_minute,
            tokens_per_minute=section.tokens_per_minute,
            deadline_s=section.deadline_s,
        ),
        prices=config.price_table(),
        cap=_cap(config),
        file=None if folder is None else folder / JOURNAL,
    )


def check(config: RunConfig) -> None:
    """Refuse a style, an endpoint, a key or a cap that cannot be used, before anything is computed."""
    style_of(config)
    if config.llm.candidates > config.recommenders.depth:
        raise ConfigError(
            f"llm.candidates is {config.llm.candidates}, but lists are {config.recommenders.depth} long; "
            f"raise recommenders.depth."
        )
    if is_endpoint(config.llm.model):
        endpoint_of(config, Path()).client.check()


def asking_key(config: RunConfig) -> dict[str, Any]:
    """Return what decides the questions; enters the keys of stages that ask."""
    style = style_of(config)
    if style == "pointwise":
        return prompt_key(config)
    if is_endpoint(config.llm.model):  # what decides whose questions are answered
        limits = config.endpoint.model_dump(include={"profile", "cap", "deadline_s"})
        return {
            **prompt_key(config),
            **config.llm.model_dump(include={"replicas", "promotion_cap"}),
            **limits,
        }
    more = config.llm.model_dump(include={"replicas", "promotion_cap"}) if style == "listwise" else {}
    return {**prompt_key(config), "style": style, **more}


def fused(config: RunConfig, ranking: Ranking, scores: FloatArray, weight: float) -> Ranking:
    """Return lists with the LLM's say, in which no item moved up further than the run allows."""
    lists = fuse(ranking, scores, weight, config.llm.candidates)
    cap = config.llm.promotion_cap
    return lists if cap is None else cap_promotions(ranking, lists, cap)


def questions(config: RunConfig, ranking: Ranking) -> DoubleArray:
    """Return how many prompts the LLM is sent for each user, (n,)."""
    shown = (ranking.items[:, : config.llm.candidates] != PAD).sum(axis=1).astype(np.float64)
    if style_of(config) not in ("listwise", "first-token"):
        return np.asarray(shown, dtype=np.float64)
    further = np.maximum(np.ceil((shown - WindowReranker.window) / WindowReranker.stride), 0)
    return np.where(shown > 0, config.llm.replicas * (1 + further), 0.0)


def chars_read(config: RunConfig, histories: Dataset, ranking: Ranking) -> DoubleArray:
    """Return the characters that the LLM reads for each user, a shared prefix once, (n,)."""
    titles, depth = known_titles(None, histories), config.llm.candidates
    titled = np.array([bool(title) for title in titles])
    listwise = _prompt(config, histories, "listwise")
    pointwise = prompt_for(config, histories)
    at_once, asked = style_of(config) in ("listwise", "first-token"), questions(config, ranking)
    found = np.zeros(ranking.users.size)
    for row, user in enumerate(ranking.users.tolist()):
        first, last = histories.indptr[user], histories.indptr[user + 1]
        at = first + np.flatnonzero(titled[histories.items[first:last]])
        values = None if histories.values is None else histories.values[at]
        history, items = histories.items[at].tolist(), ranking.items[row, :depth]
        shown = items[(items != PAD) & titled[items]].tolist()
        if at_once and shown:
            words = listwise.for_history(history, values, titles)
            # A longer list is asked about in windows of about the same length.
            request = listwise.request(words, [titles[item] for item in shown[: WindowReranker.window]])
            found[row] = asked[row] * (len(request.system) + len(request.user))
        elif not at_once:
            group = pointwise.group(history, values, shown, titles)
            found[row] = len(group.prefix) + sum(map(len, group.suffixes))
    return found


def _prompt(config: RunConfig, dataset: Dataset, style: str) -> Any:
    noun, window = noun_of(config, dataset), min(config.selection.window, LONGEST_HISTORY)
    if style == "pointwise":
        return prompt_for(config, dataset)
    if style == "likelihood":
        return NextTitlePrompt(noun=noun, window=config.selection.window)
    return ListwisePrompt(noun=noun, window=window, min_like=config.llm.min_like)


def _cap(config: RunConfig) -> SpendCap | None:
    from frugalrec.llm.http import SpendCap

    text, prices = config.endpoint.cap, config.price_table()
    if text is None:
        return None
    budget = Budget.parse(text)
    if budget.kind not in ("money", "tokens", "calls", "seconds"):
        raise ConfigError(f"endpoint.cap is {text!r}; a cap is in money, tokens, calls or seconds.")
    if budget.currency and prices is not None and budget.currency != prices.currency:
        raise ConfigError(f"endpoint.cap is {text!r}, but prices are in {prices.currency}; use one currency.")
    return SpendCap(limit=budget.amount, unit=budget.kind)
