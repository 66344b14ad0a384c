import math

import pytest

from frugalrec.reporting import words


@pytest.mark.parametrize("show", [words.fixed, words.signed, words.short, words.count, words.percent, words.plain,
                                  words.duration, words.memory, words.p_value])  # fmt: skip
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_undefined_is_a_dash_in_every_unit(show, value):
    assert show(value) == "–"


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (words.fixed, 0.09124, "0.0912"),
        (words.fixed, -0.5, "−0.5000"),
        (words.fixed, -0.00001, "0.0000"),
        (words.fixed, 1234.5, "1,234.5000"),
        (words.signed, 0.0042, "+0.0042"),
        (words.signed, -0.0042, "−0.0042"),
        (words.signed, 0.0, "0.0000"),
        (words.short, 0, "0"),
        (words.short, 0.0004, "<0.001"),
        (words.short, 0.0041, "0.0041"),
        (words.short, 0.055, "0.055"),
        (words.short, 0.31, "0.31"),
        (words.short, 41.23, "41.2"),
        (words.short, 1240.4, "1,240"),
        (words.short, -12.34, "−12.3"),
        (words.plain, 3.0, "3"),
        (words.plain, 0.3, "0.3"),
        (words.plain, 1000, "1,000"),
        (words.count, 12345, "12,345"),
        (words.percent, 0.02, "2.0 %"),
        (words.percent, 0.0, "0.0 %"),
        (words.percent, 1, "100.0 %"),
        (words.percent, 0.0004, "0.04 %"),
        (words.percent, 1e-9, "under 0.001 %"),
        (words.percent, 1 - 1e-9, "over 99.999 %"),
        (words.duration, 0, "0 ms"),
        (words.duration, 0.0021, "2.1 ms"),
        (words.duration, 0.085, "85 ms"),
        (words.duration, 0.9999, "1.0 s"),
        (words.duration, 12.34, "12.3 s"),
        (words.duration, 99.96, "1 min 40 s"),
        (words.duration, 418.3, "6 min 58 s"),
        (words.duration, 3599.9, "1 h 00 min"),
        (words.duration, 3900, "1 h 05 min"),
        (words.memory, 0, "–"),
        (words.memory, 614 * 2**20, "614 MiB"),
        (words.memory, 5 * 2**30 // 2, "2.5 GiB"),
        (words.p_value, 0.0, "<0.001"),
        (words.p_value, 0.062, "0.062"),
        (words.metric_name, "ndcg@10", "NDCG@10"),
        (words.metric_name, "recall@5", "Recall@5"),
        (words.metric_name, "like_rate", "Like rate"),
        (words.clean, "a\n\tb\x00\u202ec", "a b c"),
        (words.listing, ["a"], "a"),
        (words.listing, ["a", "b", "c"], "a, b and c"),
    ],
)
def test_numbers_and_names_as_text(show, value, text):
    assert show(value) == text
