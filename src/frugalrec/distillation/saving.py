"""Students on disk: saved whole, reloaded and compared, found again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalrec.distillation.student import ADAPTER, Distilled
from frugalrec.distillation.wording import Prompt
from frugalrec.errors import ModelError
from frugalrec.llm.adapters import read_weights
from frugalrec.llm.kv_prefix import kv_prefix, save_kv_prefix
from frugalrec.llm.models import sha256_of
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.preferences import PreferencePrompt
from frugalrec.llm.prompt_files import MANIFEST, WEIGHTS, read_manifest, save_prompt
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.runs import write_text

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query

KINDS: Mapping[str, type[Any]] = {
    kind.__name__: kind for kind in (PreferencePrompt, RerankPrompt, NextTitlePrompt)
}


def save(
    student: LocalLM,
    teacher: LocalLM,
    out: Path,
    key: str,
    prompt: Prompt,
    evidence: Mapping[str, Any],
    worded: Sequence[Query],
    probes: Sequence[Query],
    spent: Callable[[], Mapping[str, float]],
) -> Distilled:
    """Write a student, load it on a fresh model, and keep it only if it answers the same."""
    from frugalrec.tuning import integrity
    from frugalrec.tuning.reload import fresh_copy

    options = evidence["options"]
    if options["mode"] == "lora":
        # Worded prompts are its probes: whoever checks the adapter alone has no vectors.
        integrity.publish(integrity.write(student, out / ADAPTER, worded, base=teacher, key=key), teacher)
        student.adapter = out / ADAPTER
    said = {"key": key, "prompt": {"kind": type(prompt).__name__, **vars(prompt)}, **evidence}
    write = save_prompt if kv_prefix(student) is None else save_kv_prefix
    write(student, out, said)
    again = fresh_copy(teacher, student.adapter)
    try:
        from frugalrec.llm.prompt_files import load_prompt

        load_prompt(again, out)
        changed = check_same(student, again, probes)
    except ModelError:
        (out / MANIFEST).unlink()
        raise
    manifest = read_manifest(out)
    manifest["evidence"] |= {"reload_difference": changed, **spent()}
    write_text(out / MANIFEST, json.dumps(manifest, indent=1))
    return Distilled(path=out, adapter=student.adapter, prompt=prompt, evidence=manifest["evidence"])


def finished(out: Path, key: str, teacher: LocalLM) -> Distilled | None:
    """Return the student of this very call, if it is there and whole."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        if read_manifest(out)["evidence"].get("key") != key:
            return None
        found = read_student(out)
    except ModelError:  # damaged since: it is distilled again
        return None
    if "reload_difference" not in found.evidence:  # killed before it was checked
        return None
    if not _whole(out, found):
        return None
    own = found.adapter if found.evidence["options"]["mode"] == "lora" else teacher.adapter
    return Distilled(path=out, adapter=own, prompt=found.prompt, evidence=found.evidence)


def _whole(out: Path, found: Distilled) -> bool:
    """Return whether a student's weights are there as they were written."""
    path = out / WEIGHTS
    if not path.is_file() or sha256_of(path) != read_manifest(out)["sha256"]:
        return False
    if found.evidence["options"]["mode"] != "lora":
        return True
    try:
        read_weights(out / ADAPTER)
    except ModelError:
        return False
    return True


def read_student(folder: Path) -> Distilled:
    """Return what lies in a student's folder: how to load it, and how to ask it.

    Raises:
        ModelError: If it holds no distilled prompt, or it is damaged.
    """
    folder = Path(folder)
    evidence = read_manifest(folder)["evidence"]
    try:
        fields = dict(evidence["prompt"])
        kind = KINDS[fields.pop("kind")]
        lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
        prompt: Prompt = kind(**{**fields, **lists})
        mode, adapter = evidence["options"]["mode"], evidence["teacher_adapter"]
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} holds learned vectors, but not how to ask with them ({error}); it was not written by "
            "distillation."
        ) from None
    own = folder / ADAPTER if mode == "lora" else None if adapter is None else Path(adapter)
    return Distilled(path=folder, adapter=own, prompt=prompt, evidence=evidence)


def load_student(folder: Path, model: str | Path | None = None, **options: Any) -> tuple[LocalLM, Prompt]:
    """Load a distilled model and the prompt to ask it with.

    Args:
        folder: The student's folder.
        model: Where the base model is; default: what the folder says.
        options: Further options of `LocalLM.load`; `adapter` if the teacher's has moved.

    Raises:
        ModelError: If something is missing, or base model, adapter or vocabulary are others.
    """
    from frugalrec.llm.local import LocalLM

    found = read_student(folder)
    name = read_manifest(folder)["base"]["name"] if model is None else model
    adapter = options.pop("adapter", found.adapter)
    return LocalLM.load(name, adapter=adapter, prompt=Path(folder), **options), found.prompt


def check_same(student: LocalLM, again: LocalLM, probes: Sequence[Query]) -> float:
    """Return by how much a reloaded student's log-probabilities differ.

    Raises:
        ModelError: If by more than rounding explains.
    """
    from frugalrec.tuning.reload import SAME_MACHINE, difference, log_probabilities

    wanted = log_probabilities(student, probes)
    largest, allowed = difference(log_probabilities(again, probes), wanted, rounding=SAME_MACHINE)
    if not largest <= allowed:
        raise ModelError(
            f"the saved student answers otherwise than the trained one (log-probabilities differ by up to "
            f"{largest:.3g}); distil again."
        )
    return largest
