"""The question that each user's history becomes, as all ways of grounding ask it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from frugalrec.data.dataset import TITLE, Dataset
from frugalrec.errors import DataError, ModelError
from frugalrec.llm.base import LanguageModel
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.prompts import has_text
from frugalrec.types import IntArray


def questions(
    lm: LanguageModel,
    prompt: NextTitlePrompt,
    histories: Dataset,
    users: IntArray,
    titles: Sequence[str],
    *,
    room: int,
) -> list[str]:
    """Return one question a user, as in training: without the items of its window that have no title.

    Those too long for the model lose their oldest titles.

    Args:
        lm: The model that is asked.
        prompt: How questions are written.
        histories: What is known of the users.
        users: User codes.
        titles: Title of each item code, empty where there is none.
        room: Tokens to leave free for the answer.

    Raises:
        ModelError: If a question with one title is too long.
    """
    windows = [histories.history(int(user))[-prompt.window :].tolist() for user in users]
    shown = [[titles[item] for item in window if titles[item]] for window in windows]
    # Prompts that name the user are asked for by user.
    named: Any = getattr(prompt, "question_of", lambda _, history: prompt.question(history))
    texts = [named(int(user), history) for user, history in zip(users, shown, strict=True)]
    limit = getattr(lm, "max_tokens", None)
    if limit is None:
        return texts
    encode: Any = lm.encode  # type: ignore[attr-defined]  # a model that knows its limit has tokens
    for row, tokens in enumerate(encode(texts)):
        length, history = len(tokens), shown[row]
        while length + room > limit and len(history) > 1:
            history = history[1:]
            texts[row] = named(int(users[row]), history)
            length = len(encode([texts[row]])[0])
        if length + room > limit:
            raise ModelError(
                f"the question of user {int(users[row])} has {length:,} tokens with its last title alone, "
                f"and an answer may take {room:,}, but {lm.model} holds {limit:,}. Give a prompt with less "
                "max_title_chars, or shorten the longest titles of the catalogue."
            )
    return texts


def checked_titles(titles: Sequence[str | None] | None, histories: Dataset) -> list[str]:
    """Return `known_titles`, of which there must be one.

    An item without a title is neither shown nor listed: to a model, all of them would be the same.

    Raises:
        DataError: If there is not one an item, or none has text.
    """
    found = known_titles(titles, histories)
    if not any(found):
        raise DataError(f"none of {len(found)} titles has any text; a language model needs titles.")
    return found


def known_titles(titles: Sequence[str | None] | None, histories: Dataset) -> list[str]:
    """Return the title of each item code, empty for those without text; default: those of the data set.

    `Dataset.titles` shows people the id of an item without a title. An id never enters a prompt, so it
    counts as no title here, also where a caller gives those titles.

    Raises:
        DataError: If there is not one an item.
    """
    found = list(histories.titles if titles is None else titles)
    if len(found) != histories.n_items:
        raise DataError(f"expected {histories.n_items} titles, one an item; got {len(found)}.")
    for item, own in enumerate(histories.item_text[TITLE].to_list()):
        if not own and found[item] == histories.titles[item]:
            found[item] = ""
    return list(_with_text(tuple(title or "" for title in found)))


@lru_cache(maxsize=4)
def _with_text(titles: tuple[str, ...]) -> tuple[str, ...]:
    """Return titles, those without text empty; looked at once a catalogue, not once a user.

    A visible ASCII character in front saves the look at the others: it is text whatever follows.
    """
    return tuple(title if "!" <= title[:1] <= "~" or has_text(title) else "" for title in titles)
