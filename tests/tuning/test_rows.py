from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from frugalrec.data.examples import examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.testing.toys import cycle_dataset
from frugalrec.tuning.rows import build_rows, few_shots

DATA = cycle_dataset(n_users=8, n_items=30, length=6)
PROMPT = RerankPrompt(noun="film", window=3)
EXAMPLES = examples(DATA, window=3, min_history=2)
RNG = np.random.default_rng(0)
LISTS = np.stack([RNG.permutation(30) for _ in range(len(EXAMPLES))]).astype(np.int32)


def test_one_positive_and_unconsumed_negatives_in_the_prompt_of_inference():
    rows = build_rows(EXAMPLES, DATA, LISTS, PROMPT, n_negatives=3)
    assert len(rows) == 4 * len(EXAMPLES)
    for number in range(len(EXAMPLES)):
        part = [row for row in rows if row.group == number]
        user, target = int(EXAMPLES.users[number]), int(EXAMPLES.targets[number])
        prefix = PROMPT.prefix([DATA.titles[i] for i in EXAMPLES.history(number)])
        assert [row.label for row in part] == [True, False, False, False]
        assert part[0].prompt == prefix + PROMPT.suffix(DATA.titles[target])
        consumed = {prefix + PROMPT.suffix(DATA.titles[i]) for i in DATA.history(user)}
        assert len({row.prompt for row in part}) == 4
        assert not consumed & {row.prompt for row in part[1:]}


def test_draws_depend_on_the_seed_and_not_on_other_rows():
    rows = build_rows(EXAMPLES, DATA, LISTS, PROMPT, seed=1)
    assert rows == build_rows(EXAMPLES, DATA, LISTS, PROMPT, seed=1)
    assert rows != build_rows(EXAMPLES, DATA, LISTS, PROMPT, seed=2)
    alone = build_rows(EXAMPLES.take(np.array([5])), DATA, LISTS[[5]], PROMPT, seed=1)
    assert [row.prompt for row in alone] == [row.prompt for row in rows if row.group == 5]


def test_short_lists_give_fewer_negatives_and_pads_none():
    lists = np.full((len(EXAMPLES), 4), -1, dtype=np.int32)
    for number in range(len(EXAMPLES)):
        free = np.setdiff1d(np.arange(30), DATA.history(int(EXAMPLES.users[number])))
        lists[number, :2] = [free[0], EXAMPLES.targets[number]]
    rows = build_rows(EXAMPLES, DATA, lists, PROMPT, n_negatives=3)
    assert len(rows) == 2 * len(EXAMPLES)


def test_badly_rated_target_is_a_no_where_the_prompt_shows_ratings():
    rated = RerankPrompt(noun="film", window=3, min_like=4)
    rows = build_rows(EXAMPLES, DATA, LISTS, rated, n_negatives=1)
    assert EXAMPLES.labels is not None
    assert [row.label for row in rows[::2]] == (EXAMPLES.labels >= 4).tolist()
    assert 0 < sum(row.label for row in rows[::2]) < len(EXAMPLES)
    assert all("watched" not in row.prompt for row in rows)


def test_untitled_items_are_neither_shown_nor_asked_about():
    missing = {EXAMPLES.targets[0], EXAMPLES.history(1)[0], EXAMPLES.history(2)[-1], *LISTS[3, :8].tolist()}
    titles = [None if code in missing else title for code, title in enumerate(DATA.titles)]
    holes = replace(DATA, item_text=DATA.item_text.with_columns(pl.Series("title", titles)))
    for prompt in (PROMPT, RerankPrompt(noun="film", window=3, min_like=4)):
        rows = build_rows(EXAMPLES, holes, LISTS, prompt, n_negatives=3)
        named = [n for n, target in enumerate(EXAMPLES.targets) if titles[target] is not None]
        assert 0 < len(named) < len(EXAMPLES)
        assert sorted({row.group for row in rows}) == named
        assert not any("item i" in row.prompt or "untitled" in row.prompt for row in rows)
        for number in named:
            shown = [place for place, item in enumerate(EXAMPLES.history(number)) if titles[item] is not None]
            codes = EXAMPLES.history(number)[shown].tolist()
            window = slice(EXAMPLES.indptr[number], EXAMPLES.indptr[number + 1])
            prefix = prompt.for_history(codes, EXAMPLES.values[window][shown], DATA.titles)
            part = [row.prompt for row in rows if row.group == number]
            assert part[0] == prefix + prompt.suffix(DATA.titles[EXAMPLES.targets[number]])
            assert len(part) == 4
    nothing = replace(DATA, item_text=DATA.item_text.with_columns(pl.lit(None, pl.String).alias("title")))
    with pytest.raises(DataError, match="none of 8 targets has a title"):
        build_rows(EXAMPLES, nothing, LISTS, PROMPT)


def test_bad_input_names_the_value():
    with pytest.raises(DataError, match=r"\(8, m\); got \(2, 30\)"):
        build_rows(EXAMPLES, DATA, LISTS[:2], PROMPT)
    with pytest.raises(ConfigError, match="not -1"):
        build_rows(EXAMPLES, DATA, LISTS, PROMPT, n_negatives=-1)


def test_few_shots_are_drawn_balanced_or_plainly():
    labels = np.array([True] * 6 + [False] * 30)
    for k in (1, 2, 7, 12):
        balanced = few_shots(labels, k, seed=3, balanced=True)
        assert balanced.size == len(set(balanced.tolist())) == k
        assert labels[balanced].sum() == k - k // 2  # one more Yes where k is odd
        plain = few_shots(labels, k, seed=3, balanced=False)
        assert plain.size == len(set(plain.tolist())) == k
        # more shots include the fewer, and another seed draws others
        for kind, drawn in ((True, balanced), (False, plain)):
            assert set(drawn) <= set(few_shots(labels, 12, seed=3, balanced=kind))
    assert (
        few_shots(labels, 12, seed=3, balanced=False).tolist()
        != few_shots(labels, 12, seed=4, balanced=False).tolist()
    )
    shares = [labels[few_shots(labels, 12, seed=s, balanced=False)].mean() for s in range(200)]
    assert np.mean(shares) == pytest.approx(6 / 36, abs=0.03)  # as the rows come


def test_too_few_rows_for_the_shots_name_the_number():
    labels = np.array([True, False, False])
    with pytest.raises(DataError, match="cannot draw 4 shots from 3 rows"):
        few_shots(labels, 4, seed=0, balanced=False)
    with pytest.raises(DataError, match="needs 2 rows with the answer Yes, and there are 1"):
        few_shots(labels, 3, seed=0, balanced=True)
