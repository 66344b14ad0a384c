"""Dictionaries in `.npy` files, read through an unpickler that admits arrays and plain values only.

DEALRec (arXiv 2401.17197) publishes its splits as pickled dictionaries. Unpickling a file from the
internet runs whatever it names, so no name is admitted but the three that build a NumPy array.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.lib.format as npy
from numpy._core import multiarray

from frugalrec.errors import DataError


def _scalar(dtype: np.dtype[Any], data: bytes = b"") -> Any:
    """Rebuild a NumPy number; an object scalar could smuggle anything, so it is refused."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a scalar of object type")
    return np.frombuffer(data, dtype=dtype, count=1)[0]


ADMITTED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}
"""Every global a file may name, with what it stands for."""

WHOLE = (int, np.integer)


class _RefusedError(Exception):
    """A pickle named a global outside `ADMITTED`."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return an admitted global; refuse all others before anything is imported."""
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None


def load_object(path: Path) -> Any:
    """Return the object in a zero-dimensional `.npy` file, executing nothing from it.

    Raises:
        DataError: If the file is missing or damaged, or names anything but NumPy arrays and numbers.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    try:
        return _load(data)
    except _RefusedError as refused:
        raise DataError(
            f"{path}: the file asks for {refused}, and data need no such thing; it may be hostile. "
            f"Only NumPy arrays, dictionaries, lists, numbers and texts are read. Nothing was executed."
        ) from None
    except Exception as error:  # damaged pickles raise almost any exception
        raise DataError(f"{path}: not a readable .npy file ({type(error).__name__}: {error}).") from None


def _load(data: bytes) -> Any:
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = header(stream)
    if not dtype.hasobject:
        return np.load(io.BytesIO(data), allow_pickle=False)
    loaded = _Unpickler(stream, encoding="utf-8").load()
    if shape != () or not isinstance(loaded, np.ndarray) or loaded.shape != ():
        raise ValueError(f"expected one object, not an array of shape {shape}")
    return loaded.item()


def load_lists(path: Path) -> dict[int, list[int]]:
    """Return a dictionary of whole numbers to lists of whole numbers from a `.npy` file."""
    content = load_object(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary of lists, found {type(content).__name__}.")
    lists: dict[int, list[int]] = {}
    for key, row in content.items():
        values = row.tolist() if isinstance(row, np.ndarray) else row
        if not _whole(key) or not isinstance(values, list) or not all(_whole(value) for value in values):
            raise DataError(
                f"{path}: expected a list of whole numbers for each user, found {key!r}: {row!r:.60}."
            )
        lists[int(key)] = [int(value) for value in values]
    return lists


def _whole(value: object) -> bool:
    return isinstance(value, WHOLE) and not isinstance(value, bool)
