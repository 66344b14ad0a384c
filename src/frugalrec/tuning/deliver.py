"""Adapters for elsewhere: merged into a plain model, or packed up with their hashes."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frugalrec.errors import ModelError, StorageError
from frugalrec.llm.adapters import CONFIG, MANIFEST, WEIGHTS, read_manifest, read_weights
from frugalrec.runs import storage_errors
from frugalrec.tuning.integrity import EVIDENCE, manifest_probes
from frugalrec.tuning.reload import FLOAT32, HALF, difference, fresh_copy, log_probabilities

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
    with new_folder(out) as aside, quiet_transformers():
        plain = tuned.network.merge_and_unload(safe_merge=True)
        plain.save_pretrained(str(aside))
        tuned.tokenizer.save_pretrained(str(aside))
        again = type(base).load(aside, dtype=base.dtype, device=base.device)  # type: ignore[arg-type]
        rounding = FLOAT32 if base.dtype == "float32" else HALF
        largest, allowed = difference(log_probabilities(again, probes), wanted, rounding=rounding)
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

    Where it names its base model by a folder on this machine, the copy names it by the folder's last part.

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
    files = _without_places({name: (adapter / name).read_bytes() for name in names})
    if out.suffix == ".zip":
        if out.exists():
            raise StorageError(f"there is a file {out} already; choose another --out.")
        aside = out.with_name(f".{out.name}.new")
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
            aside.replace(out)
    else:
        with new_folder(out) as aside:
            for name, content in files.items():
                (aside / name).write_bytes(content)
    return list(files)


def _without_places(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return an adapter's files, with their hashes, in which no folder of this machine is named."""
    changed = dict(files)
    settings = json.loads(files[CONFIG])
    settings["base_model_name_or_path"] = _name(settings.get("base_model_name_or_path"))
    changed[CONFIG] = _json(settings)
    if MANIFEST in files:
        manifest = json.loads(files[MANIFEST])
        manifest["base"]["name"] = _name(manifest["base"]["name"])
        manifest["files"][CONFIG] = _sha256(changed[CONFIG])
        changed[MANIFEST] = _json(manifest)
    if EVIDENCE in files:
        evidence = json.loads(files[EVIDENCE])
        config = evidence.get("config", {})
        config["start"] = _name(config.get("start"))
        changed[EVIDENCE] = _json(evidence)
    sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in changed.items())
    return {**changed, HASHES: sums.encode()}


def _name(place: str | None) -> str | None:
    """Return the last part of a folder's path; a model's name or id as it is."""
    if not place:
        return place
    path = Path(place).expanduser()
    return path.name if path.is_absolute() or place.startswith(".") or path.is_dir() else place


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
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
