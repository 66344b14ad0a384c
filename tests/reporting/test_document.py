import json
import math

import numpy as np
import pytest
from sample import sample

from frugalrec.errors import DataError
from frugalrec.reporting.document import Arm, DecileTable, Interval, Report, WarmthRow


def test_json_brings_back_every_field():
    report = sample(verdict=("One.", "Two."))
    text = json.dumps(report.to_dict(), allow_nan=False)
    again = Report.from_dict(json.loads(text))
    assert again.to_dict() == report.to_dict()
    assert again.arm("fusion").difference == report.arm("fusion").difference
    assert again.deciles == report.deciles
    assert again.warmth == report.warmth
    assert again.stages == report.stages
    assert again.verdict == report.verdict
    assert again.selection == report.selection


def test_undefined_numbers_are_null_in_json_and_nan_again_afterwards():
    data = sample().to_dict()
    assert data["arms"][0]["metrics"]["coverage@10"] == {"mean": 0.98, "low": None, "high": None}
    assert math.isnan(Report.from_dict(data).arms[0].metrics["coverage@10"].low)


def test_numpy_values_become_plain_numbers():
    report = sample(seeds={"split": np.int64(3)}, dataset={"name": "x", "density": np.float32(0.5)})
    data = report.to_dict()
    assert json.loads(json.dumps(data))["seeds"] == {"split": 3}
    assert data["dataset"]["density"] == 0.5


def test_a_value_that_json_cannot_keep_is_named():
    with pytest.raises(DataError, match=r"report\.dataset\.name holds a set"):
        sample(dataset={"name": {1, 2}}).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=99), "format 99"),
        (lambda d: d.pop("format"), "format None"),
        (lambda d: d.pop("title"), "Report lacks 'title'"),
        (lambda d: d.update(extra=1), "unknown key 'extra'"),
        (lambda d: d["arms"][0].pop("users"), "Arm lacks 'users'"),
        (lambda d: d["arms"][0].update(kind="magic"), "kind 'magic'"),
        (lambda d: d["stages"][0].pop("wall_s"), "StageCost lacks 'wall_s'"),
    ],
)
def test_damaged_json_is_refused_with_the_key_named(change, message):
    data = sample().to_dict()
    change(data)
    with pytest.raises(DataError, match=message):
        Report.from_dict(data)


def test_two_arms_of_one_name_are_refused():
    arms = sample().arms
    with pytest.raises(DataError, match="two arms share the name 'random'"):
        sample(arms=(*arms, arms[0]))


def test_an_unknown_reference_is_refused():
    with pytest.raises(DataError, match="mentions 'nobody'"):
        sample(reference="nobody")


def test_a_warmth_row_of_an_unknown_arm_is_refused():
    row = WarmthRow(arm="ghost", cold=None, warm=None, cold_targets=0, warm_targets=0)
    with pytest.raises(DataError, match="mentions 'ghost'"):
        sample(warmth=(row,))


def test_deciles_need_one_value_a_group():
    with pytest.raises(DataError, match="2 groups"):
        DecileTable(metric="m", labels=("a", "b"), users=(1, 2), arms={"x": (Interval(0, 0, 0),)})


def test_asking_for_an_unknown_arm_lists_the_known_ones():
    with pytest.raises(DataError, match=r"no arm is called 'x'; arms: random, popularity"):
        sample().arm("x")


def test_kind_is_checked():
    with pytest.raises(DataError, match="use one of cheap, llm, fusion, control"):
        Arm(name="a", label="A", kind="best", users=1, metrics={})
