"""Adapters for elsewhere: merged into a plain model, or packed up with their hashes."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from frugalrec.errors import ModelError, StorageError
from frugalrec.llm.adapters import CONFIG, MANIFEST, WEIGHTS, read_manifest, read_weights
from frugalrec.llm.models import sha256_of
from frugalrec.runs import storage_errors, write_text
from frugalrec.tuning.integrity import EVIDENCE, manifest_probes
from frugalrec.tuning.reload import difference, fresh_copy, log_probabilities

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.scoring import Query

HASHES = "SHA256SUMS"


def merge(base: LocalLM, adapter: Path, out: Path) -> float:
    """Write a plain Hugging Face folder that answers as the base model with the adapter does.

    Args:
        base: The plain base model; float32 merges most exactly.
        adapter: The adapter's folder.
        out: The folder to write; it must be new or empty.

    Returns:
        The largest absolute difference of log-probabilities between both.

    Raises:
        ModelError: If the adapter does not pass its checks, or the merged model answers otherwise.
        StorageError: If the folder holds other files.
    """
    from frugalrec.llm.conversion import quiet_transformers

    tuned = fresh_copy(base, adapter)
    probes = manifest_probes(read_manifest(adapter))[0] or _probes(tuned)
    wanted = log_probabilities(tuned, probes)
    with _new_folder(out) as aside, quiet_transformers():
        plain = tuned.network.merge_and_unload(safe_merge=True)
        plain.save_pretrained(str(aside))
        tuned.tokenizer.save_pretrained(str(aside))
        again = type(base).load(aside, dtype=base.dtype, device=base.device)  # type: ignore[arg-type]
        largest, allowed = difference(log_probabilities(again, probes), wanted, exact=base.dtype == "float32")
        if not largest <= allowed:
            raise ModelError(
                f"the merged model answers otherwise than base and adapter (log-probabilities differ by up "
                f"to {largest:.3g}, rounding explains {allowed:.3g}); merge in float32."
            )
    return largest


def _probes(lm: LocalLM) -> list[Query]:
    """Return something to ask a model whose adapter brings no probes."""
    from frugalrec.llm.queries import response_query

    return [response_query(lm, "Recommend the next film. Films watched: Alien; Heat\nNext film:", " Up")]


def export(adapter: Path, out: Path) -> list[str]:
    """Pack up an adapter so that PEFT loads it anywhere: its files and their SHA-256, as folder or zip.

    Args:
        adapter: The adapter's folder; its checks are passed first.
        out: A folder (new or empty), or a file that ends in ``.zip``.

    Returns:
        Names of the files.

    Raises:
        ModelError: If the adapter does not pass its checks.
        StorageError: If there is something at `out` already.
    """
    adapter = Path(adapter)
    read_weights(adapter)
    names = [name for name in (CONFIG, WEIGHTS, MANIFEST, EVIDENCE) if (adapter / name).is_file()]
    settings = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    place = settings.get("base_model_name_or_path")
    if place and Path(place).is_absolute() and MANIFEST not in names:
        raise ModelError(
            f"{adapter / CONFIG} names the base model by a place on this machine ({place}); write the name "
            "of a model there, as base_model_name_or_path."
        )
    if out.suffix == ".zip":
        if out.exists():
            raise StorageError(f"there is a file {out} already; choose another --out.")
        aside = out.with_name(f".{out.name}.new")
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in names:
                    archive.write(adapter / name, name)
                archive.writestr(HASHES, _sums(adapter, names))
            aside.replace(out)
    else:
        with _new_folder(out) as aside:
            for name in names:
                shutil.copy2(adapter / name, aside / name)
            write_text(aside / HASHES, _sums(adapter, names))
    return [*names, HASHES]


def _sums(folder: Path, names: Sequence[str]) -> str:
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in names)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder aside that becomes `out` where the block ends without an error."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StorageError(f"{out} holds other files; choose another --out.")
    aside = out.with_name(f".{out.name}.new")
    with storage_errors(out):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield aside
            if out.exists():
                out.rmdir()
            aside.replace(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
