import math
from dataclasses import replace

import pytest
from sample import sample

from frugalrec.reporting import verdict
from frugalrec.reporting.document import ArmCost, Difference, Interval
from frugalrec.reporting.judge import best_arm


def changed(name, *, diff=None, ndcg=None, **fields):
    """The sample with one arm changed."""
    report = sample()
    if diff is not None:
        fields["difference"] = {"ndcg@10": Difference(*diff)}
    if ndcg is not None:
        fields["metrics"] = {"ndcg@10": Interval(ndcg, ndcg - 0.005, ndcg + 0.005)}
    return replace(report, arms=tuple(replace(a, **fields) if a.name == name else a for a in report.arms))


def only(*names, report=None, **changes):
    """The sample with these arms alone."""
    report = report or sample()
    arms = tuple(arm for arm in report.arms if arm.name in names)
    return replace(report, arms=arms, deciles=None, warmth=(), **changes)


def test_a_proven_gain_names_both_arms_and_shows_interval_and_cost():
    first, evidence, cost, *_ = verdict(sample())
    assert first == "EASE + tuned SmolLM2 beats EASE."
    # 0.0055 / 0.0913 = 6.02 %
    assert "reaches NDCG@10 0.0968; EASE reaches 0.0913" in evidence
    assert "over 2,384 users is +0.0055, +6.0 % of the reference" in evidence
    assert "95 % interval, +0.0029 to +0.0081, excludes zero" in evidence
    assert "94.1 ms (reference: 0.055 ms) and 421 LLM tokens per user" in cost
    assert "0.025 USD per 1,000 users, at prices of 2026-11-01" in cost


def test_an_interval_that_includes_zero_is_no_proven_gain():
    first, evidence, *_ = verdict(changed("fusion", diff=(0.0055, -0.0001, 0.0111)))
    assert first == "No proven gain: keep the cheap model, EASE."
    assert "includes zero" in evidence


def test_an_interval_that_touches_zero_is_no_proven_gain():
    assert verdict(changed("fusion", diff=(0.0055, 0.0, 0.0110)))[0].startswith("No proven gain")


def test_a_proven_loss_is_called_worse():
    report = only("ease", "llm-zero", "permuted")
    assert verdict(report)[0] == "The LLM makes it worse: keep the cheap model, EASE."


def test_a_control_that_gains_as_much_takes_the_credit_away():
    report = changed("permuted", diff=(0.0060, 0.0030, 0.0090))
    sentences = verdict(report)
    assert sentences[0] == (
        "No proven gain from the LLM: the control Random permutation gains as much; keep the cheap model, EASE."
    )
    assert any(s.startswith("A control also gains: Random permutation +0.0060") for s in sentences)


def test_a_control_that_gains_less_is_reported_but_does_not_overturn():
    sentences = verdict(changed("permuted", diff=(0.0010, 0.0005, 0.0015)))
    assert sentences[0] == "EASE + tuned SmolLM2 beats EASE."
    assert any("A control also gains" in s for s in sentences)


def test_controls_that_do_not_gain_are_listed_with_their_intervals():
    assert any(
        s.startswith("No control gains over the reference") and "Popularity re-rank −0.0018, interval −0.0039 to +0.0003" in s
        for s in verdict(sample())
    )  # fmt: skip


def test_a_better_cheap_model_than_the_reference_beats_the_llm():
    report = changed("sasrec", ndcg=0.0970)
    assert (
        verdict(report)[0] == "No proven gain: the cheap model SASRec does as well without an LLM; keep it."
    )


def test_a_cheap_model_between_reference_and_llm_leaves_the_gain_unproven():
    report = changed("sasrec", ndcg=0.0950)
    assert verdict(report)[0].endswith("but a gain over the best cheap model, SASRec, is not proven.")


def test_picking_the_best_of_several_llm_arms_is_said():
    assert any("best of 3 LLM arms" in s and "1 of 3 show a gain" in s for s in verdict(sample()))
    assert not any("LLM arms" in s for s in verdict(only("ease", "fusion", "permuted")))


def test_without_an_llm_arm_nothing_is_claimed_about_llms():
    sentences = verdict(only("ease", "als", "permuted"))
    assert sentences[0] == "No LLM was put to the test: keep the cheap model, EASE."


def test_without_a_difference_there_is_no_gain():
    assert verdict(changed("fusion", difference=None))[0].startswith(
        "No proven gain: EASE + tuned SmolLM2 was not compared"
    )


def test_an_undefined_interval_is_no_gain():
    assert verdict(changed("fusion", diff=(0.01, math.nan, math.nan)))[0].startswith("No proven gain")


def test_without_controls_the_reader_is_warned():
    assert any(s.startswith("No control was run") for s in verdict(only("ease", "fusion")))


def test_without_cheap_models_the_reader_is_warned():
    report = only("fusion", "permuted", reference="permuted")
    assert any(s.startswith("No cheap model was run") for s in verdict(report))


def test_an_error_of_the_audit_comes_first():
    report = sample(audit=({"name": "leak", "severity": "error", "message": "x"},))
    assert verdict(report)[0] == "Do not act on these numbers: the audit found 1 error-level problem."


def test_oracles_win_nothing():
    report = changed("fusion", oracle=True)
    assert best_arm(report, ("llm", "fusion")).name == "llm-tuned"
    assert verdict(report)[0] == "No proven gain: keep the cheap model, EASE."


def test_costs_that_were_not_measured_are_not_invented():
    sentences = verdict(changed("fusion", cost=ArmCost()))
    assert any("was not measured" in s for s in sentences)
    assert not any(" 0 ms" in s for s in sentences)


@pytest.mark.parametrize("low", [-0.002, 0.0, 0.001])
def test_a_gain_is_claimed_exactly_when_the_interval_is_above_zero(low):
    assert ("beats" in verdict(changed("fusion", diff=(0.005, low, 0.01)))[0]) == (low > 0)
