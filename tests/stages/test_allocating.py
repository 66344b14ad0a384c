"""Who gets the LLM in a run: answers are planted, so that what should be spent is known."""

import dataclasses
import json

import numpy as np
import pytest

from frugalrec import config as configuration
from frugalrec.errors import ConfigError
from frugalrec.ledger import Usage
from frugalrec.runs import Run, Stage
from frugalrec.stages import allocating, asking, cheap
from frugalrec.stages.asking import Calibration, Served, Variant
from frugalrec.stages.costs import budget_of, costs_of
from frugalrec.stages.data import prepare
from frugalrec.stages.reranking import chars_read
from frugalrec.stages.routing_facts import allocation_facts
from frugalrec.types import Ranking

SETTINGS = {
    "data.members": 240,
    "data.split": "user-time",
    "recommenders.names": ["random", "popularity", "ease"],
    "recommenders.first_stage": "ease",
    "recommenders.depth": 20,
    "llm.candidates": 10,
    "evaluation.resamples": 100,
}
USAGE = Usage(wall_s=20.0, tokens_in=60_000, tokens_out=0, llm_calls=600)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Data, cheap arms and the first stage of a small film club."""
    folder = tmp_path_factory.mktemp("run")
    config = configuration.load(None, {**SETTINGS, "llm.model": "none"})
    with Run(folder) as run:
        data = prepare(run, config)
        arms = [cheap.fit_and_evaluate(run, config, data, name) for name in config.recommenders.names]
    return folder, data, arms, cheap.choose_first_stage(config, arms)


def planted(base, kind, fold, seed=0):
    """Log-odds of the candidates: the answers, their opposite, noise, or answers for the active alone."""
    _, data, _, first = base
    ranking = first.rankings[fold]
    targets = data.split.targets(fold)
    held = [set(targets.history(user).tolist()) for user in ranking.users.tolist()]
    rows = zip(ranking.items[:, :10].tolist(), held, strict=True)
    truth = np.array([[item in own for item in row] for row, own in rows])
    noise = np.random.default_rng(seed).normal(size=truth.shape)
    lengths = data.split.history("valid").lengths[ranking.users]
    active = np.where(lengths >= np.quantile(lengths, 0.7), 1.0, -1.0)[:, None]
    signs = {"oracle": 1.0, "harm": -1.0, "noise": 0.0, "active": active}
    return (4 * signs[kind] * truth + 0.1 * noise).astype(np.float32)


def calibration(base, kind, config=None, seed=0, reasons=None):
    folder, data, _, first = base
    config = config or configuration.load(None, SETTINGS)
    ranking = first.rankings["valid"]
    odds = planted(base, kind, "valid", seed)
    stage = Stage(name="llm/valid-tuned", path=folder, hash="h", usage=USAGE, reused=False)
    answers = {"users": ranking.users.size, "reasons": reasons or {"answered": ranking.users.size}}
    (folder / "answers.json").write_text(json.dumps(answers))
    rows = np.arange(ranking.users.size, dtype=np.int32)
    choice = asking._choose(config, data, ranking, odds)
    return {"tuned": Calibration(name="tuned", loaded=None, rows=rows, odds=odds, choice=choice, stage=stage, answers=answers)}  # fmt: skip


def routed(base, kind, seed=0, reasons=None, **changes):
    settings = {**SETTINGS, **{name.replace("__", "."): value for name, value in changes.items()}}
    config = configuration.load(None, settings)
    _, data, arms, first = base
    known = calibration(base, kind, config, seed, reasons)
    return config, allocating.allocate_users(config, data, arms, first, known)


def facts_of(base, kind, seed=0, reasons=None, **changes):
    """The report's part, with answers for whoever was routed."""
    config, routing = routed(base, kind, seed, reasons, **changes)
    _, data, _, first = base
    known = calibration(base, kind, config, seed, reasons)["tuned"]
    ranking = first.rankings["test"]
    rows = np.flatnonzero(np.isin(ranking.users, routing.allocation.users[routing.allocation.routed]))
    odds = planted(base, kind, "test", seed)[rows]
    weight = known.weight if routing.allocation.policy == "gain-per-cost" else known.choice.weight
    variant = Variant(
        name="tuned", odds=odds, choice=known.choice, weight=weight, valid=known.stage, test=known.stage
    )
    served = Served(variants={"tuned": variant}, allocation=routing.allocation, rows=rows.astype(np.int32), samples=None,
                    adapter=None, tuning=None, model_key="", calibration_users=known.rows.size)  # fmt: skip
    return allocation_facts(config, data, first, routing, served), routing


@pytest.mark.slow
def test_an_llm_that_knows_the_answers_is_paid_for_within_the_budget(base):
    _, routing = routed(base, "oracle", allocation__policy="gain-per-cost", allocation__budget="30%")
    allocation = routing.allocation
    assert routing.measured.model.evidence.effect.low > 0
    assert 0 < allocation.spent <= 0.3 * routing.costs.total
    assert allocation.spent > 0.25 * routing.costs.total


def test_an_llm_that_harms_is_not_paid_for_whatever_the_budget(base):
    facts, routing = facts_of(
        base, "harm", allocation__policy="gain-per-cost", allocation__budget="unlimited"
    )
    assert routing.measured.gains.values.mean() < 0
    assert not routing.measured.proven
    assert not routing.allocation.routed.any()
    assert facts["decision"][0] == (
        "Nothing is spent on test users: no gain is proven on calibration users, neither on average nor for some "
        "of them."
    )
    assert facts["spent"] == 0


@pytest.mark.slow
def test_noise_is_seldom_paid_for(base):
    proven = [
        routed(base, "noise", seed, allocation__policy="gain-per-cost")[1].measured.proven
        for seed in range(12)
    ]
    assert sum(proven) <= 3  # each of two tests errs in one of twenty


def test_those_whom_it_helps_are_found_behind_those_whom_it_harms(base):
    facts, routing = facts_of(
        base, "active", allocation__policy="gain-per-cost", allocation__budget="unlimited"
    )
    assert calibration(base, "active")["tuned"].choice.weight == 0  # for all alike it is best left out
    assert routing.measured.proven
    chosen = routing.allocation.routed
    lengths = base[1].split.history("test").lengths[routing.allocation.users]
    assert chosen.any()
    assert lengths[chosen].mean() > 1.5 * lengths[~chosen].mean()
    assert facts["routed"] == int(chosen.sum())


def test_nothing_is_asked_where_the_candidates_hold_nothing(base):
    _, data, _, first = base
    config = configuration.load(None, {**SETTINGS, "allocation.policy": "gain-per-cost"})
    assert allocating.why_pointless(config, data, first) is None
    lists = first.rankings["valid"]
    targets = data.split.targets("valid")
    missed = [
        [item for item in row if item not in targets.history(user)][:10]
        for user, row in zip(lists.users.tolist(), lists.items.tolist(), strict=True)
    ]
    full = np.array([len(row) == 10 for row in missed])
    items = np.array([row for row in missed if len(row) == 10], dtype=np.int32)
    worst = Ranking(users=lists.users[full], items=items, scores=lists.scores[full, :10])
    hopeless = dataclasses.replace(first, rankings={**first.rankings, "valid": worst})
    assert "spend nothing" in allocating.why_pointless(config, data, hopeless)
    told = configuration.load(None, {**SETTINGS, "allocation.policy": "random"})
    assert allocating.why_pointless(told, data, hopeless) is None


def test_unanswered_calibration_users_prove_nothing(base):
    reasons = {"answered": 20, "unavailable": 220}
    facts, routing = facts_of(
        base, "oracle", reasons=reasons, allocation__policy="gain-per-cost", allocation__budget="unlimited"
    )
    assert not routing.allocation.routed.any()
    assert "too few calibration users were answered" in facts["decision"][0]


def test_a_budget_that_is_too_small_for_anyone_is_named(base):
    facts, _ = facts_of(base, "oracle", allocation__policy="gain-per-cost", allocation__budget="1 tokens")
    assert "a budget of 1 tokens is too small" in facts["decision"][0]


def test_a_floor_spoils_the_draw_so_that_no_rule_is_judged(base):
    facts, _ = facts_of(
        base, "oracle", allocation__policy="random", allocation__budget=100, allocation__floor=0.6
    )
    assert "policies" not in facts


def test_all_ways_that_will_be_asked_are_paid_for(base):
    _, data, arms, first = base
    config = configuration.load(None, {**SETTINGS, "allocation.budget": "20%"})
    one = calibration(base, "noise")
    two = {"zero-shot": one["tuned"], **one}
    costs = [allocating.allocate_users(config, data, arms, first, known).costs.total for known in (one, two)]
    assert costs[1] == pytest.approx(2 * costs[0])


def test_an_endpoint_costs_what_its_questions_hold_even_if_all_were_answered_before(base):
    _, data, _, first = base
    settings = {**SETTINGS, "llm.model": "http://127.0.0.1:9/v1#any", "allocation.budget": "50%"}
    config = configuration.load(None, settings)
    known = calibration(base, "noise")["tuned"]
    free = dataclasses.replace(known, stage=dataclasses.replace(known.stage, usage=Usage()))
    ranking, histories = first.rankings["valid"], data.split.history("valid")
    costs = costs_of(config, data, histories, ranking, first, [free])
    expected = chars_read(config, histories, ranking) / 4 + 32 + 6 * 10
    assert np.allclose(costs.values, expected)


def test_the_gain_of_a_user_is_measured_at_a_weight_that_others_chose():
    table = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, -2.0, 0.5, 0.5]])  # weights 0 and 1
    folds = np.array([0, 1, 0, 1])
    # fold 0 is judged by users 1 and 3: mean of weight 1 is -0.75, so weight 0; fold 1 by users 0 and 2: weight 1
    assert allocating.cross_fitted(table, folds).tolist() == [0.0, -2.0, 0.0, 0.5]


def test_costs_follow_the_length_of_prompts_and_add_up_to_what_calibration_spent(base):
    _, data, _, first = base
    config = configuration.load(None, {**SETTINGS, "allocation.budget": "1M tokens"})
    known = calibration(base, "noise")["tuned"]
    histories, ranking = data.split.history("valid"), first.rankings["valid"]
    costs = costs_of(config, data, histories, ranking, first, [known])
    assert costs.total == pytest.approx(60_000)
    chars = chars_read(config, histories, ranking)
    assert np.allclose(costs.values, 60_000 * chars / chars.sum())
    one = ranking.take(np.array([3]))
    assert chars_read(config, histories, one)[0] == chars[3]
    seconds = configuration.load(None, {**SETTINGS, "allocation.budget": "60 s"})
    assert costs_of(seconds, data, histories, ranking, first, [known]).total == pytest.approx(20.0)
    calls = configuration.load(None, {**SETTINGS, "allocation.budget": "9 calls"})
    found = costs_of(calls, data, histories, ranking, first, [known])
    assert np.allclose(found.values, 600 / ranking.users.size)


def test_users_drawn_at_random_judge_every_rule_and_random_is_the_middle(base):
    facts, _ = facts_of(base, "oracle", allocation__policy="random", allocation__budget=150)
    policies = {policy["name"]: policy for policy in facts["policies"]}
    assert facts["measured_users"] == 150
    assert facts["routed"] == 150
    assert policies["oracle"]["recovered"][0] >= max(p["recovered"][0] for p in policies.values())
    assert policies["random"]["recovered"][0] == pytest.approx(0.5, abs=0.12)
    ends = [policies[name]["curve"][-1] for name in ("random", "fewest-interactions")]
    assert ends[0] == pytest.approx(ends[1])  # everybody is asked, whatever the order
    assert sum(group["routed"] for group in facts["groups"]) == 150
    assert any(text.startswith("Weak users") and "random order" in text for text in facts["decision"])


def test_rules_are_not_judged_on_users_that_a_rule_chose(base):
    facts, _ = facts_of(base, "oracle", allocation__policy="gain-per-cost", allocation__budget="50%")
    assert "policies" not in facts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"allocation.policy": "oracle"}, "for evaluation alone"),
        ({"allocation.policy": "paper-weak"}, "for evaluation alone"),
        ({"allocation.policy": "weakest"}, "unknown policy 'weakest'"),
        ({"allocation.budget": "2 USD"}, "needs prices"),
        (
            {"allocation.budget": "2 USD", "prices": {"as_of": "2026-01-01", "currency": "EUR"}},
            "prices are in EUR",
        ),
        ({"prices": {"as_of": "2026-01-01", "per_million_tokens_in": 1.0}}, "per_million_tokens_out"),
        ({"allocation.budget": "many"}, "cannot read the budget 'many'"),
    ],
)
def test_what_cannot_be_decided_is_refused_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        allocating.check(configuration.load(None, changes))


def test_a_plain_number_counts_users():
    for given in (7, "7"):
        budget = budget_of(configuration.load(None, {"allocation.budget": given}))
        assert (budget.kind, budget.amount) == ("users", 7.0)


def test_a_long_list_is_asked_about_in_windows_and_costs_as_many_questions(base):
    _, data, _, first = base
    histories, ranking = data.split.history("valid"), first.rankings["valid"]
    wide = Ranking(
        users=ranking.users[:3],
        items=np.tile(np.arange(45, dtype=np.int32), (3, 1)),
        scores=np.tile(np.arange(45, 0, -1, dtype=np.float32), (3, 1)),
    )
    settings = {**SETTINGS, "llm.style": "listwise"}
    twenty = chars_read(configuration.load(None, {**settings, "llm.candidates": 20}), histories, wide)
    all_45 = chars_read(configuration.load(None, {**settings, "llm.candidates": 45}), histories, wide)
    assert np.array_equal(all_45, 4 * twenty)  # 1 + ceil((45 - 20) / 10)
    thrice = chars_read(
        configuration.load(None, {**settings, "llm.candidates": 20, "llm.replicas": 3}), histories, wide
    )
    assert np.array_equal(thrice, 3 * twenty)
