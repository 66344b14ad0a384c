"""Published formats, each from a small sample written here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from frugalrec.data.readers import detect, read
from frugalrec.errors import DataError


def fill(folder: Path, files: dict[str, str | bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def events(dataset) -> list[tuple]:
    return dataset.to_frames()[0].sort("user", maintain_order=True).rows()


def texts(dataset) -> list[dict]:
    return dataset.item_text.sort("item").rows(named=True)


FLAGS = "|".join(["0", "1", "0", "0", "0", "1"] + ["0"] * 13)
ML100K = {
    "u.data": "196\t242\t3\t881250949\n196\t1\t5\t881250940\n",
    "u.item": (
        f"1|Caf\u00e9 (1995)|01-Jan-1995||http://x|{FLAGS}\n242|unknown||||1{'|0' * 18}\n".encode("latin-1")
    ),
}


def test_movielens_100k(tmp_path):
    folder = fill(tmp_path / "ml-100k", ML100K)
    assert detect(folder) == detect(folder / "u.data") == "movielens-100k"
    dataset = read(folder)
    assert events(dataset) == [("196", "1", 5.0, 881250940), ("196", "242", 3.0, 881250949)]
    assert texts(dataset) == [
        {"item": "1", "title": "Caf\u00e9 (1995)", "genres": "Action|Comedy", "year": 1995},
        {"item": "242", "title": "unknown", "genres": "unknown", "year": None},
    ]
    assert read(folder / "u.data").fingerprint == dataset.fingerprint
    assert dataset.name == "ml-100k"


def test_an_archive_unpacked_by_hand_is_found_in_its_own_folder(tmp_path):
    (tmp_path / "movielens-100k").mkdir()
    inner = fill(tmp_path / "movielens-100k" / "ml-100k", ML100K)
    assert detect(tmp_path / "movielens-100k") == "movielens-100k"
    assert read(tmp_path / "movielens-100k").fingerprint == read(inner).fingerprint


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_movielens_1m_and_10m(tmp_path, encoding):
    films = "1::Am\u00e9lie (2001)::Comedy|Romance\n2::Title :3 (1999)::(no genres listed)\n"
    folder = fill(
        tmp_path / "ml", {"ratings.dat": "1::1::4.5::978300760\n", "movies.dat": films.encode(encoding)}
    )
    assert detect(folder) == "movielens-1m"
    assert events(read(folder)) == [("1", "1", 4.5, 978300760)]
    assert texts(read(folder)) == [
        {"item": "1", "title": "Am\u00e9lie (2001)", "genres": "Comedy|Romance", "year": 2001},
        {"item": "2", "title": "Title :3 (1999)", "genres": None, "year": 1999},
    ]


def test_movielens_latest(tmp_path):
    files = {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n",
        "movies.csv": 'movieId,title,genres\n1,"Series, The (2007-)",(no genres listed)\n3,No Year,Drama\n',
        "tags.csv": "userId,movieId,tag,timestamp\n",
    }
    folder = fill(tmp_path / "latest", files)
    assert detect(folder) == detect(folder / "ratings.csv") == "movielens-latest"
    assert texts(read(folder)) == [
        {"item": "1", "title": "Series, The (2007-)", "genres": None, "year": 2007},
        {"item": "3", "title": "No Year", "genres": "Drama", "year": None},
    ]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"u.data": "1\t2\t3\t4\n1\t2\t3\n"}, r"u.data: line 2 has 3 fields, not 4.*'1\\t2\\t3'"),
        ({"u.data": ""}, "u.data: the file is empty"),
        ({"u.data": "1\t2\t3\t4\n", "u.item": "1|short\n"}, r"u.item: line 1 has 2 fields, not 24"),
        ({"ratings.dat": "1::2::3::4\n", "movies.dat": "1::x\n"}, r"movies.dat: line 1 has 2 fields, not 3"),
        ({"u.data": "1\t2\tgood\t4\n"}, r"'value' holds 'good' in data row 1"),
        ({"u.data": b"1\t\xe9\t3\t4\n"}, r"byte 2 .* is not utf-8"),
    ],
)
def test_damaged_movielens_files(tmp_path, files, says):
    with pytest.raises(DataError, match=says):
        read(fill(tmp_path / "ml", files))


def test_missing_movielens_files_and_own_items(tmp_path):
    with pytest.raises(DataError, match=r"no file u.data; unpack the whole MovieLens archive"):
        read(fill(tmp_path / "empty", {}), "movielens-100k")
    folder = fill(tmp_path / "ml", {"u.data": ML100K["u.data"], "mine.csv": "id,item,title\n9,1,Mine\n"})
    assert read(folder).titles != []
    assert "Mine" in read(folder, items=folder / "mine.csv").titles


def test_sequence_files(tmp_path):
    items = '{"item_id": 7, "asin": "B1", "title": "Seven"}\n{"item_id": 8, "asin": "B2", "title": ""}\n'
    folder = fill(tmp_path / "toys", {"toys.txt": "1 9 7  9\n2\n\n3\t7\n", "items.jsonl": items})
    assert detect(folder) == detect(folder / "toys.txt") == "sequence"
    for path in (folder, folder / "toys.txt"):
        dataset = read(path)
        assert events(dataset) == [("1", "9"), ("1", "7"), ("1", "9"), ("3", "7")]
        assert [row["title"] for row in texts(dataset)] == ["Seven", None, None]
    assert dataset.times is None


def test_sequence_files_without_interactions(tmp_path):
    with pytest.raises(DataError, match="interactions table is empty"):
        read(fill(tmp_path / "a", {"a.txt": "1\n2\n"}))
    with pytest.raises(DataError, match=r"expected one sequence file \(\*.txt\), found a.txt, b.txt"):
        read(fill(tmp_path / "b", {"a.txt": "1 2\n", "b.txt": "1 2\n"}), "sequence")


def dealrec(folder: Path) -> Path:
    lists = {
        "training_dict.npy": {0: [0, 1], 1: [], 2: [2]},
        "validation_dict.npy": {0: [2], 1: [0], 2: []},
        "testing_dict.npy": {0: [], 1: [1, 3], 2: [0]},
    }
    titles = ["One", "Two", "", "Four"]
    maps = {
        "recid2title": dict(enumerate(titles)),
        "seqid2title": {str(number): title for number, title in enumerate(titles, start=1)},
    }
    lines = [{"item_id": n, "raw_id": f"B{n}", "title": t} for n, t in enumerate(titles, start=1)]
    fill(
        folder,
        {
            "sequential_train.txt": "1 1 2\n2\n3 3\n",
            "sequential_valid.txt": "1 3\n2 1\n3\n",
            "sequential_test.txt": "1\n2 2 4\n3 1\n",
            "items.jsonl": "\n".join(json.dumps(line) for line in lines),
        },
    )
    for name, content in {**lists, "title_maps.npy": maps}.items():
        np.save(folder / name, np.array(content, dtype=object), allow_pickle=True)
    return folder


@pytest.mark.parametrize("format", ["dealrec", "dealrec-npy"])
def test_dealrec_folders_keep_the_published_split(tmp_path, format):
    dataset = read(dealrec(tmp_path / "games"), format)
    assert events(dataset) == [
        ("1", "1", 0), ("1", "2", 0), ("1", "3", 1),
        ("2", "1", 1), ("2", "2", 2), ("2", "4", 2),  # nothing in train: valid and test are kept
        ("3", "3", 0), ("3", "1", 2),
    ]  # fmt: skip
    assert [row["title"] for row in texts(dataset)] == ["One", "Two", None, "Four"]


def test_dealrec_text_and_dictionaries_agree(tmp_path):
    folder = dealrec(tmp_path / "games")
    assert detect(folder) == "dealrec"
    text, npy = read(folder), read(folder, "dealrec-npy")
    for part in ("indptr", "items", "folds", "user_ids", "item_ids"):
        assert np.array_equal(getattr(text, part), getattr(npy, part))
    (folder / "sequential_train.txt").unlink()
    assert detect(folder) == "dealrec-npy"
    with pytest.raises(DataError, match=r"no sequential_train.txt; all of"):
        read(folder, "dealrec")
    (folder / "title_maps.npy").unlink()
    assert read(folder).item_text.columns == ["item", "raw_id", "title"]


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\nu1\ti1\t4\t9.0\nu1\ti2\t3\t8.0\n"


def test_recbole_atomic_files(tmp_path):
    item = 'item_id:token\ttitle:token_seq\tyear:float\ni1\t12" vinyl, "live"\t1999\ni2\t\t\n'
    folder = fill(tmp_path / "x", {"x.inter": INTER, "x.item": item})
    assert detect(folder) == detect(folder / "x.inter") == "recbole"
    dataset = read(folder)
    assert events(dataset) == [("u1", "i2", 3.0, 8), ("u1", "i1", 4.0, 9)]
    assert texts(dataset) == [
        {"item": "i1", "title": '12" vinyl, "live"', "year": "1999"},
        {"item": "i2", "title": None, "year": None},
    ]
    assert read(fill(tmp_path / "y", {"y.inter": INTER})).titles == [f"item {i}" for i in dataset.item_ids]


def test_damaged_recbole_files(tmp_path):
    with pytest.raises(DataError, match="typed columns such as user_id:token"):
        read(fill(tmp_path / "a", {"a.inter": "user_id\titem_id\nu\ti\n"}))
    with pytest.raises(DataError, match="data row 1 has 3 fields, the header has 2"):
        read(fill(tmp_path / "b", {"b.inter": 'user_id:token\titem_id:token\nu\t"i"\tx\n'}))
    with pytest.raises(
        DataError, match=r"expected one interaction file \(\*.inter\), found a.inter, b.inter"
    ):
        read(fill(tmp_path / "c", {"a.inter": INTER, "b.inter": INTER}))


REVIEWS = [
    {"rating": 5.0, "text": "long " * 50, "asin": "V1", "parent_asin": "P1", "user_id": "u",
     "timestamp": 1588687728923, "images": [{"a": 1}]},
    {"rating": 1.0, "text": "x", "asin": "V2", "parent_asin": "P2", "user_id": "u",
     "timestamp": 1588687728100, "images": []},
]  # fmt: skip
META = [
    {"parent_asin": "P1", "title": "One", "average_rating": 4.5, "categories": ["Games", "PC"], "store": "S"},
    {"parent_asin": "P2", "title": "", "average_rating": 4.5, "categories": [], "store": None},
    {"parent_asin": "P3", "title": "Three", "average_rating": 4.5, "categories": [], "store": None},
]


@pytest.mark.parametrize("ratings_only", [False, True])
def test_amazon_reviews_2023(tmp_path, ratings_only):
    folder = fill(
        tmp_path / "g",
        {"meta_Games.jsonl.gz": gzip.compress("\n".join(json.dumps(row) for row in META).encode())},
    )
    if ratings_only:
        rows = [f"{r['user_id']},{r['parent_asin']},{r['rating']},{r['timestamp']}" for r in REVIEWS]
        text = "\n".join(["user_id,parent_asin,rating,timestamp", *rows])
        (folder / "Games.csv.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "Games.jsonl").write_text("\n".join(json.dumps(row) for row in REVIEWS))
    assert detect(folder) == "amazon-2023"
    dataset = read(folder)
    assert events(dataset) == [("u", "P2", 1.0, 1588687728), ("u", "P1", 5.0, 1588687728)]  # by millisecond
    assert texts(dataset) == [
        {"item": "P1", "title": "One", "categories": "Games|PC", "store": "S"},
        {"item": "P2", "title": None, "categories": None, "store": None},
    ]


def test_amazon_folders_without_reviews(tmp_path):
    with pytest.raises(DataError, match=r"expected one review file beside meta_\*.jsonl, found none"):
        read(fill(tmp_path / "g", {"meta_Games.jsonl": json.dumps(META[0])}))
    alone = fill(tmp_path / "h", {"Games.jsonl": json.dumps(REVIEWS[0])})
    assert read(alone / "Games.jsonl", "amazon-2023").n == 1
    assert read(alone, "amazon-2023").titles == ["item P1"]
