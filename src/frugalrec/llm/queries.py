"""From texts to token queries: where in the tokens an answer or a continuation begins.

Every prompt is tokenised whole, so tokens that straddle the border of prefix and suffix are those
that the model would see in one text; shared prefixes are found among the tokens afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from frugalrec.errors import ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.prefix import common_prefix
from frugalrec.llm.scoring import Query
from frugalrec.types import LongArray

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

TAIL = 32
"""Last characters of a prompt that decide how an answer after it is split into tokens."""


def answer_queries(lm: LocalLM, groups: Sequence[PromptGroup], answers: Sequence[str]) -> list[list[Query]]:
    """Return one query per suffix: the answers' first tokens after the whole prompt."""
    if not answers:
        raise ModelError("choose needs at least one answer.")
    prompts = [[group.prefix + suffix for suffix in group.suffixes] for group in groups]
    rows = iter(lm.encode([prompt for group in prompts for prompt in group]))
    firsts: dict[str, LongArray] = {}
    queries = []
    for group in prompts:
        found = []
        for prompt in group:
            tokens = next(rows)
            tail = prompt[-TAIL:]
            if tail not in firsts:
                firsts[tail] = _first_tokens(lm, prompt, tokens, answers)
            found.append(_query(lm, tokens, firsts[tail]))
        queries.append(found)
    return queries


def _query(lm: LocalLM, tokens: Sequence[int], targets: LongArray) -> Query:
    if lm.is_encoder_decoder:
        return Query(tokens=tuple(tokens), positions=(0,), targets=targets, decoder=(decoder_start(lm),))
    return Query(tokens=tuple(tokens), positions=(len(tokens) - 1,), targets=targets)


def _first_tokens(lm: LocalLM, prompt: str, tokens: Sequence[int], answers: Sequence[str]) -> LongArray:
    """Return the first token of each answer after this prompt, (1, n_answers)."""
    if lm.is_encoder_decoder:
        rows = lm.tokenizer(list(answers), add_special_tokens=False).input_ids
        start = 0
    else:
        rows = lm.encode([prompt + answer for answer in answers])
        start = len(tokens)
    firsts = []
    for answer, row in zip(answers, rows, strict=True):
        if len(row) <= start or (start and list(row[:start]) != list(tokens)):
            raise ModelError(
                f"the answer {answer!r} does not begin with a token of its own after a prompt that ends in "
                f"{prompt[-12:]!r}: it is empty or merges with it. Begin the answer with a blank, and end "
                "the prompt without one."
            )
        firsts.append(row[start])
    if len(set(firsts)) < len(firsts):
        raise ModelError(
            f"the answers {list(answers)} cannot be told apart by {lm.model}: their first tokens are "
            f"{firsts}. Choose answers that begin differently."
        )
    return np.array([firsts], dtype=np.int64)


def continuation_queries(
    lm: LocalLM, prompts: Sequence[str], continuations: Sequence[Sequence[str]]
) -> list[list[Query]]:
    """Return one query per continuation, which reads every token of it."""
    build = _decoded if lm.is_encoder_decoder else _continued
    return [build(lm, prompt, texts) for prompt, texts in zip(prompts, continuations, strict=True)]


def response_query(lm: LocalLM, prompt: str, response: str) -> Query:
    """Return a query that reads every token of a response, and the end-of-text token behind it."""
    ((query,),) = continuation_queries(lm, [prompt], [[response]])
    end = lm.tokenizer.eos_token_id
    if end is None:
        return query
    last = int(query.targets[-1, 0])
    targets = np.append(query.targets, [[end]], axis=0)
    if query.decoder:
        return replace(
            query,
            decoder=(*query.decoder, last),
            positions=(*query.positions, len(query.decoder)),
            targets=targets,
        )
    return replace(
        query,
        tokens=(*query.tokens, last),
        positions=(*query.positions, len(query.tokens)),
        targets=targets,
    )


def known_places(
    lm: LocalLM,
    prompt: str,
    tokens: Sequence[int],
    known: Sequence[tuple[int, bool]],
    answers: tuple[int, int],
) -> list[int]:
    """Return the token before each answer that stands in a prompt, as positions in its tokens.

    Args:
        lm: A causal model.
        prompt: The text.
        tokens: Its tokens.
        known: (offset, yes) of the answers, in characters.
        answers: Token ids of Yes and No.

    Raises:
        ModelError: If an answer does not begin with its own token at its place.
    """
    places = []
    starts = lm.encode([prompt[:offset] for offset, _ in known])
    for (offset, yes), start in zip(known, starts, strict=True):
        wanted = answers[0] if yes else answers[1]
        if list(tokens[: len(start) + 1]) != [*start, wanted]:
            raise ModelError(
                f"the answer behind {prompt[max(0, offset - 20) : offset]!r} is split into other tokens by "
                f"{lm.model} than the answer asked for at the end; write the prompt in another style."
            )
        places.append(len(start) - 1)
    return places


def _continued(lm: LocalLM, prompt: str, texts: Sequence[str]) -> list[Query]:
    own, *rows = lm.encode([prompt, *(prompt + text for text in texts)])
    queries = []
    for row in rows:
        cut = max(common_prefix([own, row]), 1)
        # The last token is only ever read, so it is not computed.
        targets = np.array(row[cut:], dtype=np.int64)[:, None]
        kept = tuple(row[: max(len(row) - 1, 1)])
        queries.append(Query(tokens=kept, positions=tuple(range(cut - 1, len(row) - 1)), targets=targets))
    return queries


def _decoded(lm: LocalLM, prompt: str, texts: Sequence[str]) -> list[Query]:
    (tokens,) = lm.encode([prompt])
    rows = lm.tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []
    start = decoder_start(lm)
    return [
        Query(
            tokens=tuple(tokens),
            positions=tuple(range(len(row))),
            targets=np.array(row, dtype=np.int64)[:, None],
            decoder=(start, *row[:-1]),
        )
        for row in rows
    ]


def decoder_start(lm: LocalLM) -> int:
    """Return the token that an encoder-decoder model's answers begin after."""
    config = lm.network.config
    start = config.decoder_start_token_id
    return int(lm.pad_id if start is None else start)
