"""Tables with mapped or guessed columns, times in any unit, and the errors that name the cell."""

from __future__ import annotations

import gzip
import importlib
import time
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest

from frugalrec.data.readers import READERS, detect, read
from frugalrec.data.readers.columns import assign, to_seconds
from frugalrec.errors import ConfigError, DataError


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def events(dataset) -> list[tuple]:
    """Every interaction with its external ids, in the data set's order, users sorted."""
    frame, _ = dataset.to_frames()
    return frame.sort("user", maintain_order=True).rows()


@pytest.mark.parametrize("entry", READERS.values())
def test_every_entry_of_the_table_resolves(entry):
    module, _, function = entry.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize(
    "header",
    ["user,item,rating,timestamp", "userId,movieId,rating,timestamp", "UID,Product ID,Stars,ts",
     "user_id,parent_asin,value,time", "reviewerID,asin,overall,unixReviewTime"],
)  # fmt: skip
def test_common_column_names_are_guessed(tmp_path, header):
    path = write(tmp_path / "a.csv", f"{header}\nu1,i1,4.5,20\nu1,i2,3,10\n")
    dataset = read(path)
    assert events(dataset) == [("u1", "i2", 3.0, 10), ("u1", "i1", 4.5, 20)]  # by time, not by row
    assert dataset.name == "a"


def test_parent_asin_is_preferred_to_the_variant():
    assert assign(["asin", "parent_asin"], {}, ("item",), "x") == {"item": "parent_asin"}


def test_mapped_columns_win_over_guesses(tmp_path):
    path = write(tmp_path / "a.csv", "user,customer,item\nx,c1,i1\n")
    assert events(read(path, columns={"user": "customer"})) == [("c1", "i1")]


def test_a_mapped_column_is_not_guessed_for_another_role(tmp_path):
    path = write(tmp_path / "a.csv", "user,item,rating,score\nu,i,1,9\n")
    assert events(read(path, columns={"item": "rating", "value": "score"})) == [("u", "1", 9.0)]


def test_wrong_columns_name_what_is_there(tmp_path):
    path = write(tmp_path / "a.csv", "who,what\nu,i\n")
    with pytest.raises(DataError, match=r"which column is the user among who, what.*--column user=who"):
        read(path)
    with pytest.raises(DataError, match=r"no column 'nobody' for the user; the columns are who, what"):
        read(path, columns={"user": "nobody"})
    with pytest.raises(ConfigError, match=r"unknown column role 'usr'"):
        read(path, columns={"usr": "who"})


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_the_separator_is_seen_in_the_header(tmp_path, separator):
    path = write(tmp_path / "a.csv", "user,item,rating\nu,i,4\n".replace(",", separator))
    assert events(read(path)) == [("u", "i", 4.0)]


def test_gzip_byte_order_marks_and_windows_newlines(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress("\ufeffuser,item\r\nu,\u00e9\r\n".encode()))
    assert events(read(path)) == [("u", "\u00e9")]
    assert read(path).name == "a"


def test_exact_duplicates_are_kept(tmp_path):
    path = write(tmp_path / "a.csv", "user,item,rating,time\n" + "u,i,4,10\n" * 3)
    assert read(path).n == 3


def test_row_order_is_kept_where_there_is_no_time(tmp_path):
    path = write(tmp_path / "a.csv", "user,item\nu,c\nu,a\nv,z\nu,b\n")
    assert events(read(path)) == [("u", "c"), ("u", "a"), ("u", "b"), ("v", "z")]


def test_parquet_and_jsonl_agree_with_csv(tmp_path):
    csv = write(tmp_path / "a.csv", "user,item,value,time\nu1,i1,4.5,20\nu1,i2,3,10\nu2,i1,1,5\n")
    frame = pl.read_csv(csv)
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ndjson(tmp_path / "a.jsonl")
    prints = {read(tmp_path / f"a.{kind}").fingerprint for kind in ("csv", "parquet", "jsonl")}
    assert len(prints) == 1


def test_whole_float_ids_lose_their_decimal(tmp_path):
    frame = pl.DataFrame({"user": [1.0, 2.0], "item": [10, 11]})
    frame.write_parquet(tmp_path / "a.parquet")
    assert events(read(tmp_path / "a.parquet")) == [("1", "10"), ("2", "11")]


def test_an_items_table_brings_titles_and_other_columns(tmp_path):
    path = write(tmp_path / "a.csv", "user,sku\nu,i1\n")
    items = write(
        tmp_path / "texts.jsonl", '{"sku": "i1", "name": "One", "price": 3}\n{"sku": "i2", "name": ""}\n'
    )
    dataset = read(path, columns={"item": "sku"}, items=items)
    rows = dict(zip(dataset.item_text["item"], dataset.item_text["title"], strict=True))
    assert rows == {"i1": "One", "i2": None}
    assert dataset.item_text.columns == ["item", "title", "price"]
    other = read(path, columns={"item": "sku"}, items=items, item_columns={"item": "sku", "title": "price"})
    assert "3" in other.titles
    with pytest.raises(DataError, match=r"which column is the item id among a, b.*--item-column item=a"):
        read(path, columns={"item": "sku"}, items=write(tmp_path / "b.csv", "a,b\n1,2\n"))
    with pytest.raises(DataError, match="no such items file"):
        read(path, columns={"item": "sku"}, items=tmp_path / "none.csv")


def test_a_column_that_takes_a_used_name_steps_aside(tmp_path):
    path = write(tmp_path / "a.csv", "user,item\nu,1\n")
    items = write(tmp_path / "i.csv", "code,item,label\n1,shirt,T\n")
    dataset = read(path, items=items, item_columns={"item": "code", "title": "label"})
    assert dataset.item_text.rows(named=True) == [{"item": "1", "item_given": "shirt", "title": "T"}]


@pytest.mark.parametrize(
    ("cells", "unit", "seconds"),
    [
        (["10", "20"], "auto", [10, 20]),
        (["1716163200", "1716163201.9"], "auto", [1716163200, 1716163201]),
        (["1716163200000", "1716163201999"], "auto", [1716163200, 1716163201]),
        (["1716163200000000"], "auto", [1716163200]),
        (["5000"], "ms", [5]),
        (["-1", "0"], "s", [-1, 0]),
        (["1970-01-02", "1970-01-02 00:00:01"], "auto", [86400, 86401]),
        (["1970-01-01T01:00:00Z", "1970-01-01T01:00:00+01:00"], "auto", [3600, 0]),
        (["1970-01-01T00:00:01.999", "1970/01/01 00:00:02", "1970-01-01 00:01"], "auto", [1, 2, 60]),
        ([date(1970, 1, 2)], "auto", [86400]),
        ([datetime(1970, 1, 1, 1, tzinfo=UTC)], "auto", [3600]),
        ([datetime(1969, 12, 31, 23, 59, 59)], "auto", [-1]),
    ],
)
def test_times_become_unix_seconds(cells, unit, seconds):
    assert to_seconds(pl.Series("time", cells), unit, "x")[0].to_list() == seconds


def test_events_within_a_second_keep_the_order_of_their_milliseconds(tmp_path):
    path = write(tmp_path / "a.csv", "user,item,ts\nu,late,1716163200900\nu,early,1716163200100\n")
    assert [row[1] for row in events(read(path))] == ["early", "late"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (4102444800, r"'4102444800' in data row 2 means 2100-01-01.*Correct the row"),
        (1716163200000, r"means the year 56\d\d\d.*looks like milliseconds: use --time-unit ms"),
        ("2100-01-01", r"means 2100-01-01"),
    ],
)
def test_a_future_time_names_the_value_and_the_date(tmp_path, value, says):
    first = "2001-01-01" if isinstance(value, str) else "10"
    path = write(tmp_path / "a.csv", f"user,item,time\nu,i,{first}\nu,j,{value}\n")
    with pytest.raises(DataError, match=says):
        read(path)


def test_today_is_not_the_future(tmp_path):
    path = write(tmp_path / "a.csv", f"user,item,time\nu,i,{int(time.time()) + 3600}\n")
    assert read(path).n == 1


def test_milliseconds_read_as_seconds_are_named(tmp_path):
    path = write(tmp_path / "a.csv", "user,item,time\nu,i,1716163200000\n")
    with pytest.raises(DataError, match="use --time-unit ms"):
        read(path, time_unit="s")
    assert read(path, time_unit="ms").times.tolist() == [1716163200]
    with pytest.raises(ConfigError, match="unknown time unit 'h'"):
        read(path, time_unit="h")


@pytest.mark.parametrize("bad", ["yesterday", "31/12/2020", "nan", "", "1e300"])
def test_a_bad_time_names_the_row(tmp_path, bad):
    path = write(tmp_path / "a.csv", f"user,item,time\nu,i,10\nu,j,{bad}\n")
    with pytest.raises(DataError, match=r"in data row 2 is neither a number nor an ISO date"):
        read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("user,item,rating\nu,i,4\nu,j,good\n", r"'value' holds 'good' in data row 2"),
        ("user,item,rating\nu,i,4\nu,j,\n", r"'value' holds None in data row 2"),
        ("user,item,rating\nu,i,nan\n", r"'value' holds 'nan' in data row 1"),
        ("user,item\nu,i\n,j\n", r"no user id, the first in data row 2"),
        ('user,item\nu,i\nu,""\n', r"no item id, the first in data row 2"),
        ("user,item,time,rating\nu,i,1716163200900,x\nu,j,1716163200100,2\n", r"holds 'x' in data row 1"),
        ("user,item\n", r"table is empty"),
        ("", r"the file is empty"),
        ("user,item\nu,i\nu,i,9\n", r"line 3 has 3 fields, the header has 2: 'u,i,9'"),
        ('user,item\nu,"i\n', r"not a readable table"),
        ("1,2,5,100\n1,3,4,200\n", r"looks like data, not a header"),
        ("user,item,fold\nu,i,train\nu,j,later\n", r"the fold 'later' in data row 2"),
    ],
)
def test_bad_cells_show_the_original_text_and_row(tmp_path, text, says):
    with pytest.raises(DataError, match=says):
        read(write(tmp_path / "a.csv", text))


def test_a_format_that_is_named_counts_for_more_than_the_file_name(tmp_path):
    assert events(read(write(tmp_path / "a.data", "user,item\nu,i\n"), "csv")) == [("u", "i")]
    assert events(read(write(tmp_path / "b.json", '{"user": "u", "item": "i"}\n'), "jsonl")) == [("u", "i")]
    with pytest.raises(DataError, match="line 1 is not JSON"):
        read(tmp_path / "a.data", "jsonl")


def test_categories_are_texts_and_lists_are_refused(tmp_path):
    frame = pl.DataFrame({"user": ["b", "a"], "item": ["9", "8"], "value": ["4", "2"], "time": ["30", "20"]})
    categories = frame.with_columns(pl.all().cast(pl.Categorical))
    categories.write_parquet(tmp_path / "a.parquet")
    assert events(read(tmp_path / "a.parquet")) == [("a", "8", 2.0, 20), ("b", "9", 4.0, 30)]
    for column in ("user", "value", "time"):
        frame.with_columns(pl.concat_list(column)).write_parquet(tmp_path / "b.parquet")
        with pytest.raises(DataError, match=rf"the {column} column holds List\(String\)"):
            read(tmp_path / "b.parquet")


@pytest.mark.parametrize("line", [0, 1, 2, 999])
def test_the_byte_at_fault_is_found_anywhere(tmp_path, line):
    lines = [b"user,item,note"] + [b"u,i,x"] * 1000
    lines[line] += b"\xff"
    (tmp_path / "a.csv").write_bytes(b"\n".join(lines))
    at = b"\n".join(lines).index(b"\xff")
    with pytest.raises(DataError, match=rf"byte {at} \(0xff, line {line + 1}\) is not utf-8"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("column", ["user", "item"])
def test_ids_with_zero_bytes_are_refused(tmp_path, column):
    other = "item" if column == "user" else "user"
    path = write(tmp_path / "a.csv", f"{column},{other}\nx,a\nx\0,a\n")
    with pytest.raises(DataError, match=rf"the {column} id 'x.x00' holds a zero byte"):
        read(path)


def test_folds_may_be_words(tmp_path):
    path = write(tmp_path / "a.csv", "user,item,split\nu,a,train\nu,b,Validation\nu,c,test\n")
    assert read(path).folds.tolist() == [0, 1, 2]


def test_other_encodings_are_named_by_byte_and_line_and_can_be_given(tmp_path):
    path = write(tmp_path / "a.csv", "user,item\nu,caf\u00e9\n", "latin-1")
    with pytest.raises(DataError, match=r"byte 15 \(0xe9, line 2\) is not utf-8.*--encoding latin-1"):
        read(path)
    assert events(read(path, encoding="latin-1")) == [("u", "caf\u00e9")]
    with pytest.raises(DataError, match="unknown encoding 'utf-99'"):
        read(path, encoding="utf-99")


def test_damaged_files_are_data_errors(tmp_path):
    whole = tmp_path / "a.parquet"
    pl.DataFrame({"user": ["u"] * 99, "item": ["i"] * 99}).write_parquet(whole)
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable parquet file"):
        read(whole)
    cut = tmp_path / "a.csv.gz"
    cut.write_bytes(gzip.compress(b"user,item\nu,i\n")[:-6])
    with pytest.raises(DataError, match="not a complete gzip file"):
        read(cut)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"user": ', r"line 3 is not JSON .*: '\{\"user\": '"),
        ("[1]", r"line 3 is not a JSON object"),
        ('{"user": "u", "item": "i", "rating": "bad"}', r"'value' holds 'bad' in data row 2"),
        ('{"user": "u", "item": "i", "rating": [1]}', r"'value' holds '\[1\]' in data row 2"),
        ('{"item": "i", "rating": 2}', r"no user id, the first in data row 2"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, says):
    path = write(tmp_path / "a.jsonl", f'{{"user": "u", "item": "i", "rating": 3}}\n\n{line}\n')
    with pytest.raises(DataError, match=says):
        read(path)


def test_jsonl_without_objects(tmp_path):
    for text, says in (("", "the file is empty"), ("\n\n", "no JSON objects"), ("\xe9", "is not utf-8")):
        with pytest.raises(DataError, match=says):
            read(write(tmp_path / "a.jsonl", text, "latin-1"))


def test_missing_paths_and_unknown_formats(tmp_path):
    with pytest.raises(DataError, match=r"no such file or folder.*frugalrec data get"):
        read(tmp_path / "none")
    with pytest.raises(DataError, match=r"cannot tell the format \(it holds nothing\).*movielens-100k"):
        detect(tmp_path)
    prose = write(tmp_path / "notes.txt", "these are notes\n")
    with pytest.raises(DataError, match="cannot tell the format"):
        detect(prose)
    with pytest.raises(ConfigError, match=r"unknown format 'excel'; choose auto or one of csv"):
        read(prose, "excel")
    with pytest.raises(DataError, match=r"which column is the user among these are notes"):
        read(prose, "csv")
    with pytest.raises(DataError, match=r"expected interactions.csv or one csv file, found none"):
        read(tmp_path, "csv")


def test_seeds_permute_codes_and_names_name(tmp_path):
    rows = "".join(f"u{n},i{n}\n" for n in range(50))
    path = write(tmp_path / "a.csv", f"user,item\n{rows}")
    first, second = read(path, seed=0), read(path, seed=1, name="mine")
    assert first.user_ids.tolist() != second.user_ids.tolist()
    assert sorted(first.user_ids) == sorted(second.user_ids)
    assert second.name == "mine"
    assert events(first) == events(second)
