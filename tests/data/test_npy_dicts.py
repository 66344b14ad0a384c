"""The restricted unpickler: the published dictionaries pass, and nothing else is ever executed."""

from __future__ import annotations

import os
import pickle
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from frugalrec.data.readers.npy_dicts import load_lists, load_object
from frugalrec.errors import DataError


class Runs:
    """Pickles as a call of the given function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def saved(folder: Path, content: object, protocol: int = 4) -> Path:
    """Write a `.npy` file as NumPy does, with a chosen pickle protocol."""
    array = np.empty((), dtype=object)
    array[()] = content
    path = folder / "a.npy"
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
        pickle.dump(array, stream, protocol=protocol)
    return path


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.text(max_size=5)
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.slow
@settings(deadline=None)
@given(content=plain, protocol=st.sampled_from([3, 4, 5]))
def test_plain_values_come_back(tmp_path_factory, content, protocol):
    path = saved(tmp_path_factory.mktemp("npy"), content, protocol)
    assert load_object(path) == content


@settings(deadline=None)
@given(array=arrays(np.int64, st.integers(0, 5)))
def test_lists_may_be_arrays_and_numpy_numbers(tmp_path_factory, array):
    content = {np.int32(3): array, 4: [np.int64(n) for n in array]}
    path = saved(tmp_path_factory.mktemp("npy"), content)
    assert load_lists(path) == {3: array.tolist(), 4: array.tolist()}


def test_what_numpy_writes_itself_comes_back(tmp_path):
    content = {0: [1, 2], 1: []}
    np.save(tmp_path / "b.npy", content, allow_pickle=True)
    assert load_lists(tmp_path / "b.npy") == content


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((os.system, "touch {mark}"), r"(posix|nt)\.system"),
        ((eval, "open({mark!r}, 'w')"), r"builtins\.eval"),
        ((subprocess.Popen, "touch {mark}"), r"subprocess\.Popen"),
        ((open, "{mark}", "w"), r"(io|_io)\.open"),
        ((getattr, "x", "y"), r"builtins\.getattr"),
        ((np.load, "{mark}"), r"numpy.*load"),
        ((OrderedDict,), r"collections\.OrderedDict"),
    ],
)
@pytest.mark.parametrize("protocol", [3, 4])
def test_a_hostile_file_is_refused_by_name_and_runs_nothing(tmp_path, call, named, protocol):
    mark = tmp_path / "mark"
    function, *arguments = call
    bomb = Runs(function, *(text.format(mark=str(mark)) for text in arguments))
    with pytest.raises(DataError, match=rf"asks for {named}.*Nothing was executed"):
        load_object(saved(tmp_path, {0: [bomb]}, protocol))
    assert not mark.exists()


def test_an_object_scalar_cannot_smuggle_a_value(tmp_path):
    scalar = np.int64(3).__reduce__()[0]
    with pytest.raises(DataError, match="a scalar of object type"):
        load_object(saved(tmp_path, Runs(scalar, np.dtype("O"), b"x")))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "expected a dictionary of lists, found list"),
        ({"a": [1]}, "expected a list of whole numbers for each user, found 'a'"),
        ({1: "ab"}, "expected a list of whole numbers for each user, found 1: 'ab'"),
        ({1: [1.5]}, r"found 1: \[1.5\]"),
        ({1: [True]}, r"found 1: \[True\]"),
    ],
)
def test_other_contents_are_named(tmp_path, content, says):
    with pytest.raises(DataError, match=says):
        load_lists(saved(tmp_path, content))


def test_damaged_and_missing_files(tmp_path):
    path = saved(tmp_path, {0: list(range(500))})
    whole = path.read_bytes()
    for size in (0, 4, 60, 130, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a readable .npy file"):
            load_object(path)
    np.save(tmp_path / "many.npy", np.array([[1], "x"], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="expected one object"):
        load_object(tmp_path / "many.npy")
    with pytest.raises(DataError, match="cannot be read"):
        load_object(tmp_path / "none.npy")
    np.save(tmp_path / "plain.npy", np.arange(3))
    assert load_object(tmp_path / "plain.npy").tolist() == [0, 1, 2]
