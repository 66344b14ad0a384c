"""How POD's three tasks are put: worded templates, a bare form of ids alone, and the writing of ids.

In training each sample draws one of its task's templates, all alike, and the last of them is the bare form:
so the learned vectors must carry what the words say whenever there are no words. At inference there never
are. Without learned vectors (mode `discrete`) words are all there is: the bare form is left out, and
inference uses the first template. `asked` and `draw_templates` say so, and nothing else does. Which of
users and items are written how is the affair of an `IdWriter`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frugalrec.errors import ConfigError, DataError
from frugalrec.grounding.item_ids import ItemIds, catalogue_hash
from frugalrec.llm.prompts import clean_title
from frugalrec.rng import generator

SEQUENTIAL, TOP_N, EXPLANATION = "sequential", "top-n", "explanation"
TASKS = (SEQUENTIAL, TOP_N, EXPLANATION)
USER, ITEMS = "{user}", "{items}"
SOMEONE = "someone"
"""What stands for the user in words where users are not written."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    SEQUENTIAL: (
        "{user} went through {items} , oldest first . Name what comes after these .",
        "Orders of {user} so far : {items} . Which one follows ?",
        "Having taken {items} in turn , {user} is about to take",
        "What would {user} pick up once done with {items} ?",
        "{user} {items}",
    ),
    TOP_N: (
        "Only one of {items} suits {user} . Name it .",
        "Out of this shelf {user} will take one : {items}",
        "For {user} , choose from {items}",
        "{user} {items}",
    ),
    EXPLANATION: (
        "Say in a sentence why {user} would like {items} or not .",
        "What has {user} to say of {items} ?",
        "Give a reason for showing {items} to {user}",
        "{user} {items}",
    ),
}
"""Templates of each task, in words of this project; the last is the bare form."""
_SLOT = re.compile(r"(\{user\}|\{items\})")


def bare(task: str) -> int:
    """Return the number of a task's bare template."""
    return len(TEMPLATES[task]) - 1


def asked(task: str, *, worded: bool) -> int:
    """Return the template of validation and inference: the bare one, or (`worded`) the first in words."""
    return 0 if worded else bare(task)


def parts(template: str, *, users: bool) -> list[str]:
    """Return the words of a template and its slots in turn; words begin with a blank.

    >>> parts("{user} chose {items} .", users=True)
    ['{user}', ' chose', '{items}', ' .']
    >>> parts("{user} {items}", users=False)
    ['{items}']
    """
    is_bare = template == f"{USER} {ITEMS}"
    if not users:
        template = template.replace(USER, "" if is_bare else SOMEONE)
    found = [part if part in (USER, ITEMS) else part.strip() for part in _SLOT.split(template)]
    return [part if part in (USER, ITEMS) else f" {part}" for part in found if part]


def draw_templates(
    task: str, n: int, seed: int, *stream: str | int, worded: bool = False
) -> NDArray[np.int64]:
    """Return a template for each of n samples, uniformly; `worded` leaves the bare one out."""
    kinds = bare(task) if worded else len(TEMPLATES[task])
    return generator(seed, "pod", "templates", task, *stream).integers(0, kinds, n)


@dataclass(frozen=True, kw_only=True)
class IdWriter:
    """What stands for users and items in prompts, and for items in answers.

    >>> writer = IdWriter(items=("item_7", "item_8"), answers=("7", "8"), users=None, catalogue="")
    >>> writer.text("sequential", bare("sequential"), 0, [1, 0])
    ' item_8 item_7'
    """

    items: tuple[str, ...]
    """Each item in prompts, by item code."""
    answers: tuple[str, ...]
    """Each item as an answer; no two alike."""
    users: tuple[str, ...] | None
    """Each user, by user code, or None: users are not written, so any user can be asked for."""
    catalogue: str
    """Hash of the catalogue, see `catalogue_hash`."""
    separator: str = ""
    """What stands between two items, besides a blank."""

    def __post_init__(self) -> None:
        """Check that answers tell items apart."""
        if len(self.items) != len(self.answers) or not self.items:
            raise DataError(f"{len(self.items)} items need as many answers, not {len(self.answers)}.")
        if len(set(self.answers)) < len(self.answers):
            raise DataError(
                f"{len(self.answers) - len(set(self.answers))} items share their answer with another; write "
                "them with ids that differ."
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that is written."""
        digest = hashlib.sha256(self.separator.encode())
        for texts in (self.items, self.answers, self.users or ()):
            digest.update("\x1f".join(texts).encode() + b"\0")
        return digest.hexdigest()

    def text(self, task: str, template: int, user: int | None, items: Sequence[int]) -> str:
        """Return the text of a sample, which begins with a blank; its tokens are those of this text.

        Args:
            task: Its task.
            template: Number of its template.
            user: User code, not looked at where users are not written; None leaves the user's place empty.
            items: Item codes.
        """
        said = []
        for part in parts(TEMPLATES[task][template], users=self.users is not None):
            if part == ITEMS:
                between = f" {self.separator} " if self.separator else " "
                said.append(" " + between.join(self.items[item] for item in items) if len(items) else "")
            elif part == USER and self.users is not None:
                said.append("" if user is None else f" {self.users[user]}")
            else:
                said.append(part)
        return "".join(said)


def write_ids(ids: ItemIds, *, n_users: int | None = None, seed: int = 0) -> IdWriter:
    """Return a writer of item ids, numbers (``item_0345``, answer ``0345``) or codes (``<a_3><b_7>``).

    Args:
        ids: The ids; those of titles are written by `write_titles`.
        n_users: Write users too, as random numbers ``user_12``; default: they are not written.
        seed: Seed of the users' numbers.
    """
    if ids.kind == "titles":
        raise ConfigError("ids of titles are tokens of a model; write titles with write_titles.")
    texts = tuple(ids.text(item) for item in range(ids.n_items))
    numbers = texts[0].isdigit()
    users = None
    if n_users is not None:
        drawn = generator(seed, "pod", "user-numbers").permutation(n_users) + 1
        users = tuple(f"user_{number}" for number in drawn.tolist())
    items = tuple(f"item_{text}" for text in texts) if numbers else texts
    return IdWriter(items=items, answers=texts, users=users, catalogue=ids.catalogue)


def write_titles(titles: Sequence[str], item_ids: NDArray[np.str_], *, max_chars: int = 120) -> IdWriter:
    """Return a writer of titles; items of one title are told apart by ``(2)``, ``(3)``, ...

    Args:
        titles: Title of each item code.
        item_ids: External id of each item code.
        max_chars: Longest title.
    """
    texts: dict[str, None] = {}
    for title in (clean_title(title, max_chars) for title in titles):
        name, number = title, 1
        while name in texts:
            number += 1
            name = f"{title} ({number})"
        texts[name] = None
    said = tuple(texts)
    return IdWriter(items=said, answers=said, users=None, catalogue=catalogue_hash(item_ids), separator="|")
