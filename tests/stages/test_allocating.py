"""Who gets the LLM in a run: answers are planted, so that what should be spent is known."""

import numpy as np
import pytest

from frugalrec import config as configuration
from frugalrec.errors import ConfigError
from frugalrec.grounding.fusion import WeightChoice
from frugalrec.ledger import Usage
from frugalrec.runs import Run, Stage
from frugalrec.stages import allocating, cheap
from frugalrec.stages.asking import Calibration, Served, Variant
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


def planted(base, kind, fold):
    """Log-odds of the candidates: the answers themselves, their opposite, or noise."""
    _, data, _, first = base
    ranking = first.rankings[fold]
    targets = data.split.targets(fold)
    held = [set(targets.history(user).tolist()) for user in ranking.users.tolist()]
    truth = np.array(
        [[item in own for item in row] for row, own in zip(ranking.items[:, :10].tolist(), held, strict=True)]
    )
    noise = np.random.default_rng(0).normal(size=truth.shape)
    signs = {"oracle": 4.0, "harm": -4.0, "noise": 0.0}
    return (signs[kind] * truth + 0.1 * noise).astype(np.float32)


def calibration(base, kind):
    folder, _, _, first = base
    n = first.rankings["valid"].users.size
    stage = Stage(name="llm/valid-tuned", path=folder, hash="h", usage=USAGE, reused=False)
    choice = WeightChoice(weight={"oracle": 1.0, "harm": 0.0, "noise": 0.0}[kind], values={0.0: 0.0})
    rows = np.arange(n, dtype=np.int32)
    return {"tuned": Calibration(name="tuned", loaded=None, rows=rows, odds=planted(base, kind, "valid"), choice=choice, stage=stage)}  # fmt: skip


def routed(base, kind, **changes):
    settings = {**SETTINGS, **{name.replace("__", "."): value for name, value in changes.items()}}
    config = configuration.load(None, settings)
    _, data, arms, first = base
    return config, allocating.allocate_users(config, data, arms, first, calibration(base, kind))


def facts_of(base, kind, **changes):
    """The report's part, with answers for whoever was routed."""
    config, routing = routed(base, kind, **changes)
    _, data, _, first = base
    known = calibration(base, kind)["tuned"]
    ranking = first.rankings["test"]
    rows = np.flatnonzero(np.isin(ranking.users, routing.allocation.users[routing.allocation.routed]))
    odds = planted(base, kind, "test")[rows]
    variant = Variant(name="tuned", odds=odds, choice=known.choice, valid=known.stage, test=known.stage)
    served = Served(variants={"tuned": variant}, allocation=routing.allocation, rows=rows.astype(np.int32), samples=None,
                    adapter=None, tuning=None, model_key="", calibration_users=known.rows.size)  # fmt: skip
    return allocation_facts(config, data, first, routing, served), routing


def test_an_llm_that_knows_the_answers_is_paid_for_within_the_budget(base):
    _, routing = routed(base, "oracle", allocation__policy="gain-per-cost", allocation__budget="30%")
    allocation = routing.allocation
    assert routing.measured.model.evidence.effect.low > 0
    assert 0 < allocation.spent <= 0.3 * routing.costs.total
    assert allocation.spent > 0.25 * routing.costs.total


@pytest.mark.parametrize("kind", ["harm", "noise"])
def test_an_llm_that_gains_nothing_is_not_paid_for(base, kind):
    facts, routing = facts_of(base, kind, allocation__policy="gain-per-cost", allocation__budget="unlimited")
    assert routing.measured.gains.values.mean() <= 0.002
    if kind == "harm":
        assert np.abs(routing.measured.gains.values).max() == 0  # the weight of 0 wins in every fold
    assert routing.allocation.routed.mean() < 0.1
    if not routing.allocation.routed.any():
        assert facts["decision"][0].startswith("Nothing is spent on test users")
        assert facts["spent"] == 0


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
    costs = allocating.costs_of(config, data, histories, ranking, first, known)
    assert costs.total == pytest.approx(60_000)
    chars = chars_read(config, histories, ranking)
    assert np.allclose(costs.values, 60_000 * chars / chars.sum())
    one = ranking.take(np.array([3]))
    assert chars_read(config, histories, one)[0] == chars[3]
    seconds = configuration.load(None, {**SETTINGS, "allocation.budget": "60 s"})
    assert allocating.costs_of(seconds, data, histories, ranking, first, known).total == pytest.approx(20.0)
    calls = configuration.load(None, {**SETTINGS, "allocation.budget": "9 calls"})
    found = allocating.costs_of(calls, data, histories, ranking, first, known)
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
        ({"allocation.budget": "many"}, "cannot read the budget 'many'"),
    ],
)
def test_what_cannot_be_decided_is_refused_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        allocating.check(configuration.load(None, changes))


def test_a_plain_number_counts_users():
    for given in (7, "7"):
        budget = allocating.budget_of(configuration.load(None, {"allocation.budget": given}))
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
