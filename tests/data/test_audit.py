"""Each check fires on data made to have its defect and is silent on clean data; the rules equal naive loops."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frugalrec.data.audit import CHECKS, AuditReport, Finding, audit, ids
from frugalrec.data.audit.view import first_by_id
from frugalrec.data.dataset import Dataset
from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError, LeakError
from frugalrec.testing.toys import cycle_dataset

USERS, ITEMS, LENGTH = 150, 60, 8
STAGGERED = pl.col("time") + pl.col("user") % 5 * 86_400
"""Users who start on different days: leave-last-out then trains on other users' future."""


def clean_frames(prefix: str = "") -> tuple[pl.DataFrame, pl.DataFrame]:
    """Random tastes, ids and steps of an hour: none of the checks has anything to say."""
    rng = np.random.default_rng(1)
    items = np.concatenate([rng.permutation(ITEMS)[:LENGTH] for _ in range(USERS)])
    users = np.repeat(np.arange(USERS), LENGTH)
    times = 1_700_000_000 + np.tile(np.arange(LENGTH) * 86_400, USERS) + users
    frame = pl.DataFrame({"user": users, "item": [f"{prefix}{i}" for i in items], "time": times})
    texts = pl.DataFrame(
        {
            "item": [f"{prefix}{i}" for i in range(ITEMS)],
            "title": [f"The {chr(65 + i % 26)}{i} story" for i in range(ITEMS)],
        }
    )
    return frame, texts


def clean(**changes: pl.Series | pl.Expr) -> Dataset:
    """The clean data with some columns of the interactions replaced; None drops a column."""
    frame, texts = clean_frames()
    for column, values in changes.items():
        frame = frame.drop(column) if values is None else frame.with_columns(values.alias(column))
    return Dataset.from_frames(frame, texts, name="toy")


def titled(*titles: str | None) -> Dataset:
    """The clean data with the first titles replaced."""
    frame, texts = clean_frames()
    column = list(titles) + texts["title"].to_list()[len(titles) :]
    return Dataset.from_frames(frame, texts.with_columns(pl.Series("title", column)), name="toy")


def found(dataset: Dataset, name: str, method: str | None = None) -> Finding | None:
    report = audit(dataset, None if method is None else split(dataset, method))
    return next((f for f in report.findings if f.name == name), None)


def sequences(*rows: list[int], users: list[int] | None = None, times: bool = False) -> Dataset:
    numbers = users or list(range(1, len(rows) + 1))
    frame = pl.DataFrame(
        {
            "user": np.repeat(numbers, [len(row) for row in rows]),
            "item": [item for row in rows for item in row],
        }
    )
    if times:
        frame = frame.with_columns(pl.int_range(pl.len()).alias("time"))
    return Dataset.from_frames(frame, name="toy")


def first_appearance(n_users: int = 60, fresh: int = 6) -> Dataset:
    """Users who each meet 6 new items, numbered as they come: 1-6, 7-12, ..."""
    return sequences(*[list(range(1 + u * fresh, 1 + (u + 1) * fresh)) for u in range(n_users)])


# ---- the table, and clean data --------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "time"])
def test_clean_data_have_no_finding(method):
    dataset = clean()
    assert audit(dataset, None if method is None else split(dataset, method)).findings == ()


def test_leave_last_out_of_clean_data_is_only_not_a_global_time_split():
    dataset = clean(time=STAGGERED)
    assert [f.name for f in audit(dataset, split(dataset, "leave-last-out")).findings] == ["not-global-time"]


# ---- ids ------------------------------------------------------------------------------------------


def test_ids_in_order_of_first_appearance_are_an_error():
    finding = found(first_appearance(), "id-order")
    assert finding.severity == "error"
    assert (finding.count, finding.share) == (60, 1.0)  # every last item is the largest before it, plus 1
    assert "HR@1 1.0000" in finding.message
    assert finding.examples == ("user 1", "user 2", "user 3")


@pytest.mark.parametrize("prefix", ["item_", "ml1m-"])
def test_a_common_prefix_does_not_hide_the_order(prefix):
    leaky = first_appearance()
    frame, _ = leaky.to_frames()
    frame = frame.with_columns(pl.format("{}{}", pl.lit(prefix), "item").alias("item"))
    assert found(Dataset.from_frames(frame, name="toy"), "id-order").count == 60


def test_renumbering_at_random_removes_the_error():
    frame, _ = first_appearance().to_frames()
    number = dict(
        zip(frame["item"].unique(maintain_order=True), np.random.default_rng(0).permutation(360), strict=True)
    )
    frame = frame.with_columns(pl.Series("item", [str(number[i]) for i in frame["item"]]))
    assert found(Dataset.from_frames(frame, name="toy"), "id-order") is None


def test_ids_that_are_not_numbers_have_no_order():
    frame, texts = clean_frames()
    hexed = frame.with_columns(pl.format("x{}y", "item").alias("item"))
    dataset = Dataset.from_frames(hexed, name="toy")
    assert ids.id_numbers(dataset.item_ids) is None
    assert found(dataset, "id-order") is None


def test_user_numbers_leak_where_the_next_id_rule_misses():
    # Histories hold 2 new items, then the target skips one id: never max + 1, always close above all before.
    rows = [[4 * u + 1, 4 * u + 2, 4 * u + 4] for u in range(100)] + [
        [4 * u + 3, 4 * u + 3] for u in range(100)
    ]
    dataset = sequences(*rows)
    finding = found(dataset, "id-order")
    assert (finding.count, finding.severity) == (0, "error")
    assert "id-frontier" in finding.message
    # The same sequences under shuffled user numbers: no frontier, no finding.
    numbers = (np.random.default_rng(0).permutation(200) + 1).tolist()
    assert found(sequences(*rows, users=numbers), "id-order") is None


def test_the_toy_ring_is_numbered_in_walking_order():
    assert found(cycle_dataset(), "id-order").severity == "error"


def test_id_numbers_are_ranks_of_the_integers():
    assert ids.id_numbers(np.array(["i10", "i9", "i200"])).tolist() == [1, 0, 2]
    assert ids.id_numbers(np.array(["i1", "j2"])) is None
    assert ids.id_numbers(np.array(["1", "two"])) is None
    assert ids.id_numbers(np.array([], dtype=np.str_)) is None


def test_sequences_sorted_by_id_are_an_error():
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.permutation(60)[:6]).tolist() for _ in range(30)]
    mixed = rows + [rng.permutation(60)[:6].tolist() for _ in range(70)]
    finding = found(sequences(*mixed), "sorted-sequences")
    naive = sum(row in (sorted(row), sorted(row, reverse=True)) for row in mixed)
    assert (finding.severity, finding.count, finding.share) == ("error", naive, naive / 100)


def test_short_sorted_sequences_are_no_evidence():
    assert found(sequences(*[[1, 2, 3, 4]] * 50), "sorted-sequences") is None


# ---- folds ----------------------------------------------------------------------------------------


def future_toy(folds: list[int], times: list[int] | None) -> Dataset:
    columns = {"user": [1, 1, 1, 2, 2, 2], "item": [1, 2, 3, 1, 2, 4], "fold": folds}
    return Dataset.from_frames(
        pl.DataFrame(columns if times is None else {**columns, "time": times}), name="toy"
    )


def test_a_training_interaction_newer_than_the_users_test_one_is_an_error():
    # User 1: test at 10, train at 20 and 30. User 2: train 10, valid 20, test 30, in order.
    finding = found(future_toy([2, 0, 0, 0, 1, 2], [10, 20, 30, 10, 20, 30]), "future-training")
    assert (finding.severity, finding.count, finding.share) == ("error", 1, 1 / 3)
    assert finding.examples == ("user 1",)


def test_a_validation_interaction_newer_than_the_test_one_is_future_too():
    assert found(future_toy([0, 2, 1, 0, 1, 2], [1, 2, 3, 1, 2, 3]), "future-training").count == 1


def test_without_times_the_order_of_rows_tells_the_future():
    assert found(future_toy([2, 0, 1, 0, 1, 2], None), "future-training").count == 1
    assert found(future_toy([0, 1, 2, 0, 1, 2], None), "future-training") is None


def test_interactions_at_the_same_instant_are_not_older():
    assert found(future_toy([0, 1, 2, 0, 1, 2], [5] * 6), "future-training") is None


def test_leave_last_out_trains_on_other_users_future():
    dataset = clean(time=STAGGERED)
    finding = found(dataset, "not-global-time", "leave-last-out")
    parts = split(dataset, "leave-last-out")
    late = sum(
        int(time < held_back.times.max())
        for held_back, held in ((parts.train, parts.valid), (parts.history("test"), parts.test))
        for time in held.times.tolist()
    )
    assert (finding.severity, finding.count) == ("warning", late)
    assert found(dataset, "not-global-time", "time") is None


def test_cold_items_are_counted_by_interaction():
    # Train knows items 1 to 4 only; the test fold asks for 3, 5, 5 and the valid fold for 4.
    frame = pl.DataFrame(
        {
            "user": [1, 1, 1, 2, 2, 3, 3, 3],
            "item": [1, 2, 3, 3, 5, 4, 4, 5],
            "fold": [0, 0, 2, 0, 2, 0, 1, 2],
        }
    )
    finding = found(Dataset.from_frames(frame, name="toy"), "cold-items")
    assert (finding.severity, finding.count, finding.share) == ("warning", 2, 2 / 3)
    assert "test 2 of 3 (66.7%), valid 0 of 1 (0.0%)" in finding.message
    assert finding.examples == ("5",)


def test_cold_and_single_event_users_are_counted_by_user():
    frame = pl.DataFrame({"user": [1, 1, 2, 3, 3], "item": [1, 2, 1, 2, 1], "fold": [0, 2, 2, 0, 1]})
    dataset = Dataset.from_frames(frame, name="toy")
    cold, single = found(dataset, "cold-users"), found(dataset, "single-event-users")
    assert (cold.count, cold.share, cold.examples) == (1, 0.5, ("user 2",))  # user 2 of test users 1, 2
    assert (single.count, single.share) == (1, 1 / 3)  # user 2 of held-out users 1, 2, 3
    assert found(clean(), "single-event-users") is None


def test_single_event_users_are_seen_without_a_split():
    finding = found(sequences([1, 2], [1], [2, 3, 1]), "single-event-users")
    assert (finding.severity, finding.count, finding.share) == ("warning", 1, 1 / 3)


def test_a_small_test_fold_is_a_warning():
    finding = found(sequences(*[[1, 2, 3]] * 99), "tiny-fold", "leave-last-out")
    assert (finding.severity, finding.count) == ("warning", 99)
    assert found(sequences(*[[1, 2, 3]] * 100), "tiny-fold", "leave-last-out") is None


def test_an_item_of_the_history_as_target_is_a_repeat():
    finding = found(sequences([1, 2, 1], [1, 2, 3], [3, 3, 1]), "repeated-targets", "leave-last-out")
    # User 1 has test item 1 in train; user 3 has valid item 3 in train: 2 of 6 held-out ones.
    assert (finding.severity, finding.count, finding.share) == ("warning", 2, 1 / 3)
    assert finding.examples == ("1", "3")


def test_published_folds_are_audited_without_a_split_even_when_one_is_empty():
    frame = pl.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 2, 3], "fold": [0, 2, 0, 2]})
    dataset = Dataset.from_frames(frame, name="toy")
    with pytest.raises(DataError, match="valid fold empty"):
        split(dataset, "given")
    assert found(dataset, "cold-items").count == 1


# ---- interactions ---------------------------------------------------------------------------------


def test_copies_and_returns_are_told_apart():
    frame = pl.DataFrame({"user": [1, 1, 1, 1, 2], "item": [1, 1, 1, 2, 1], "time": [5, 5, 9, 5, 5]})
    dataset = Dataset.from_frames(frame, name="toy")
    copies, returns = found(dataset, "duplicate-interactions"), found(dataset, "repeated-interactions")
    assert (copies.severity, copies.count) == ("warning", 1)  # (1, 1, 5) twice
    assert (returns.severity, returns.count) == ("info", 1)  # (1, 1) again at 9


def test_without_times_every_repeat_is_a_copy():
    dataset = sequences([1, 1, 1], [1, 2])
    assert found(dataset, "duplicate-interactions").count == 2
    assert found(dataset, "repeated-interactions") is None


def test_milliseconds_as_seconds_are_noticed():
    frame, _ = clean_frames()
    finding = found(clean(time=frame["time"] * 1_000), "implausible-times")
    assert (finding.severity, finding.count) == ("warning", USERS * LENGTH)


def test_ties_in_time_are_a_warning():
    finding = found(clean(time=pl.lit(1_700_000_000)), "tied-times")
    assert (finding.severity, finding.share) == ("warning", 1.0)


def test_a_skewed_catalogue_is_worth_knowing():
    finding = found(sequences(*[[1, 2 + u % 19] for u in range(40)]), "popularity-skew")
    # 20 items, so the top 2: item 1 with 40, item 2 with 3 (users 0, 19, 38), of 80.
    assert (finding.severity, finding.count, finding.share) == ("info", 43, 43 / 80)


# ---- titles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "title",
    ["title_168", "Item7", "movie-3", "unknown", "None", "NaN", "N/A", "n/a", "null", "???", "-", "0"],
)
def test_placeholders_are_recognised(title):
    finding = found(titled(title), "placeholder-titles")  # "0" is the item's own id
    assert (finding.severity, finding.count) == ("warning", 1)
    assert finding.examples == (f"0: {title}",)


@pytest.mark.parametrize(
    "title",
    [
        "Unknown (2011)",
        "Movie 43 (2013)",
        "Title Fight",
        "1984",
        "Nan and Lily",
        "8½",
        "Item: a play",
        "M",
        "It",
    ],
)
def test_real_titles_are_not_placeholders(title):
    assert found(titled(title), "placeholder-titles") is None


@pytest.mark.parametrize("title", [None, "", "  "])
def test_missing_titles_are_counted(title):
    finding = found(titled(title), "missing-titles")
    assert (finding.severity, finding.count, finding.share) == ("warning", 1, 1 / ITEMS)
    assert finding.examples == ("0",)


def test_items_that_share_a_title_are_counted_by_item():
    finding = found(titled("Heat", "Heat", "Heat ", "Alien", "Alien", "Aliens"), "duplicate-titles")
    # Heat x3, Alien x2: 5 items share 2 titles, 3 more items than titles; "Heat " differs by a space.
    assert finding.count == 5
    assert "share 2 titles, 3 more items than titles (counting outer spaces, 4 and 2)" in finding.message
    assert finding.examples == ("Heat (3 items)", "Alien (2 items)")


@pytest.mark.parametrize("title", ["Amélie", "Don’t", "Кино", "Señor – the film", "宮崎", "naïve", "½"])
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_utf8_read_as_something_else_is_mojibake(title, wrong):
    garbled = title.encode().decode(wrong, errors="replace")
    assert found(titled(garbled), "mojibake").examples == (f"0: {garbled}",)


@pytest.mark.parametrize(
    "title", ["Amélie", "Don’t", "Кино", "Señor – the film", "宮崎", "À bout de souffle", "«É»"]
)
def test_correct_text_is_not_mojibake(title):
    assert found(titled(title), "mojibake") is None


def test_replacement_characters_are_mojibake():
    assert found(titled("Am\ufffdlie"), "mojibake").count == 1


@pytest.mark.parametrize(
    ("title", "hit"), [("Q&amp;A", 1), ("&#39;71", 1), ("&#x27;", 1), ("AT&T; x", 0), ("R&B", 0)]
)
def test_html_entities_are_counted(title, hit):
    finding = found(titled(title), "html-entities")
    assert (0 if finding is None else finding.count) == hit


@pytest.mark.parametrize(("length", "hit"), [(300, False), (301, True)])
def test_very_long_titles_are_counted(length, hit):
    assert (found(titled("é" * length), "very-long-titles") is not None) == hit


def test_titles_with_the_separator_are_an_info():
    finding = found(titled("Warcraft; the chest", "a;b"), "separator-titles")
    assert (finding.severity, finding.count) == ("info", 1)


# ---- the report -----------------------------------------------------------------------------------


def test_enforce_names_every_error_its_figure_remedy_and_way_out():
    report = audit(first_appearance())
    with pytest.raises(LeakError) as caught:
        report.enforce()
    text = str(caught.value)
    assert text.startswith("toy: the audit found 2 errors.")  # such files are sorted, too
    for part in (
        "id-order",
        "HR@1 1.0000",
        "Renumber the items",
        "--allow id-order",
        "--allow sorted-sequences",
    ):
        assert part in text


def test_an_allowed_error_lets_the_run_go_on():
    report = audit(first_appearance())
    with pytest.raises(LeakError, match="(?s)found 1 error.*sorted-sequences") as caught:
        report.enforce(allow=["id-order"])
    assert "--allow id-order" not in str(caught.value)
    report.enforce(allow=["id-order", "sorted-sequences"])
    assert report.errors(["id-order", "sorted-sequences"]) == ()


def test_an_unknown_name_to_allow_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'id-odor'; known: id-order, sorted-sequences"):
        audit(clean()).enforce(allow=["id-odor"])


def test_errors_come_first_and_warnings_never_stop_a_run():
    warning = Finding(name="mojibake", severity="warning", count=1, share=None, message="m")
    AuditReport("toy", (warning,)).enforce()
    severities = [
        f.severity for f in audit(future_toy([2, 0, 0, 0, 1, 2], [10, 20, 30, 10, 20, 30])).findings
    ]
    assert severities == sorted(severities, key=["error", "warning", "info"].index)
    assert severities[0] == "error"


def test_the_report_is_json():
    report = audit(first_appearance())
    again = json.loads(json.dumps(report.to_dict()))
    assert again == report.to_dict()
    assert again["findings"][0]["name"] == "id-order"
    assert again["dataset"] == "toy"


def test_examples_show_the_smallest_ids_first():
    ids = np.array(["10", "9", "b", "100", "2"])
    assert [str(ids[c]) for c in first_by_id(ids, np.array([0, 3, 1, 1, 4]), 3)] == ["2", "9", "10"]


# ---- any data -------------------------------------------------------------------------------------

TITLES = st.sampled_from(
    [None, "", "Heat", "Heat ", "title_3", "Ã©", "&amp;", "x" * 301, "a; b", "\x00", "宮崎"]
)
NUMBERED = st.integers(0, 9).map(str)
NAMED = st.sampled_from(["a", "b1", "٣", "c\n7", " ", "item_1", "item_2", "é"])


@st.composite
def frames(draw) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    n = draw(st.integers(1, 40))
    ids = st.one_of(NUMBERED, NAMED) if draw(st.booleans()) else NUMBERED
    columns = {name: draw(st.lists(ids, min_size=n, max_size=n)) for name in ("user", "item")}
    if draw(st.booleans()):
        columns["time"] = draw(st.lists(st.integers(-5, 30) | st.just(2**60), min_size=n, max_size=n))
    if draw(st.booleans()):
        columns["fold"] = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    frame = pl.DataFrame(columns)
    if not draw(st.booleans()):
        return frame, None
    items = frame["item"].unique().sort()
    titles = draw(st.lists(TITLES, min_size=items.len(), max_size=items.len()))
    return frame, pl.DataFrame({"item": items, "title": pl.Series(titles, dtype=pl.String)})


def reports(dataset: Dataset) -> list[dict]:
    """The findings without a split and with every split that the data allow."""
    found = [audit(dataset).to_dict()]
    for method in ("given", "time", "leave-last-out"):
        try:
            parts = split(dataset, method)
        except DataError:
            continue
        found.append(audit(dataset, parts).to_dict())
    return found


@settings(max_examples=30, deadline=None)
@given(frames(), st.integers(0, 99))
def test_the_audit_never_fails_and_never_depends_on_the_codes(tables, seed):
    first = reports(Dataset.from_frames(*tables, name="any", seed=0))
    for report in first:
        json.dumps(report)
        for finding in report["findings"]:
            assert finding["name"] in CHECKS
            assert finding["share"] is None or 0 <= finding["share"] <= 1
            assert finding["count"] >= 0
            assert finding["message"] and finding["remedy"]
    assert reports(Dataset.from_frames(*tables, name="any", seed=seed)) == first


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=7), min_size=1, max_size=8))
def test_the_id_rules_equal_naive_loops(rows):
    dataset = sequences(*rows)
    ranks, users = ids.id_numbers(dataset.item_ids), ids.id_numbers(dataset.user_ids)
    order = {number: rank for rank, number in enumerate(sorted({i for row in rows for i in row}))}
    rows = [[order[i] for i in row] for row in rows]
    next_id = sum(len(row) > 1 and row[-1] == max(row[:-1]) + 1 for row in rows)
    frontier, popular, highest = 0, 0, -1
    known = [i for row in rows for i in row[:-1]] if any(len(row) > 1 for row in rows) else []
    # The last item of a user with one event is no target: the rule counts it as known.
    known += [row[0] for row in rows if len(row) == 1]
    top = sorted(order.values(), key=lambda i: (-known.count(i), i))[:12]
    for row in rows:
        if len(row) > 1:
            highest = max([highest, *row[:-1]])
            frontier += highest < row[-1] <= highest + 12
            popular += row[-1] in top
    monotone = sum(len(set(row)) >= 5 and row in (sorted(row), sorted(row, reverse=True)) for row in rows)
    assert ids.next_id_hits(dataset, ranks).sum() == next_id
    assert ids.frontier_hits(dataset, ranks, users).sum() == frontier
    assert ids.popular_hits(dataset, ranks).sum() == popular
    assert ids.sorted_hits(dataset, ranks).sum() == monotone


def test_every_check_of_the_table_has_fired_in_this_file():
    """The name of each finding is the name in the table, so `--allow` means what it says."""
    fired = {
        name
        for report in (
            audit(first_appearance()),
            audit(future_toy([2, 0, 0, 0, 1, 2], [10, 20, 30, 10, 20, 30])),
            audit(clean(time=STAGGERED), split(clean(time=STAGGERED), "leave-last-out")),
            audit(sequences([1, 1, 2], [1], *[[3, 3 + u] for u in range(1, 30)])),
            audit(clean(time=pl.lit(2**60))),
            audit(
                Dataset.from_frames(
                    pl.DataFrame({"user": [1, 1], "item": [1, 1], "time": [1, 2]}), name="toy"
                )
            ),
            audit(sequences([1, 2, 1], [1, 2, 3]), split(sequences([1, 2, 1], [1, 2, 3]))),
            audit(
                Dataset.from_frames(
                    pl.DataFrame({"user": [1, 2], "item": [1, 2], "fold": [0, 2]}), name="toy"
                )
            ),
            audit(titled("", "title_1", "Heat", "Heat", "Ã©", "&amp;", "x" * 301, "a; b")),
        )
        for name in [f.name for f in report.findings]
    }
    assert fired == set(CHECKS)
