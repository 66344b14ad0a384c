import json

import numpy as np
import pytest
from coded import split

from frugalrec.data.splits import split as cut
from frugalrec.errors import ConfigError
from frugalrec.evaluation.evaluate import evaluate, evaluate_ranking, fold_ranks
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import Ranking

METRICS = ["ndcg@3", "recall@2:capped", "auc"]


@pytest.fixture
def parts():
    # Items 0..5. User 0: train 0, valid 1, test 2. User 1: train 3, test 3 and 4. User 2: no test.
    # User 3: test 5 without any history.
    return split([[0], [3], [1], []], [[1], [], [2], []], [[2], [3, 4], [], [5]], 6)


SCORES = np.array([[6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0.0]])


def score(users):
    return SCORES[users]


def test_test_fold_masks_train_and_valid(parts):
    result = evaluate("arm", score, parts, "test", ["mrr", "auc"])
    assert result.users.tolist() == [0, 1]
    # User 0: 0 and 1 are masked, so 2 is first. User 1: 3 is masked and, seen before, no target;
    # 4 comes after 0 1 2 and before 5.
    assert result.values["mrr"].tolist() == [1, 1 / 4]
    assert result.values["auc"].tolist() == [1, 1 / 4]
    assert result.details["n_targets"] == 2
    assert result.details["n_targets_already_seen"] == 1
    assert result.details["score_s"] >= 0


def test_seen_items_can_be_included(parts):
    result = evaluate("arm", score, parts, "test", ["mrr"], seen="include")
    assert result.values["mrr"].tolist() == [1 / 3, 1 / 4]
    assert result.details["n_targets"] == 3


def test_valid_fold_masks_train_only_and_ranks_valid(parts):
    result = evaluate("arm", score, parts, "valid", ["mrr"])
    assert result.users.tolist() == [0, 2]
    assert result.values["mrr"].tolist() == [1, 1 / 4]  # user 2: 5 4 3 before 2


def test_users_can_be_chosen_and_undefined_users_stay(parts):
    result = evaluate("arm", score, parts, "test", METRICS, users=np.array([2, 3, 0]))
    assert result.users.tolist() == [2, 3, 0]
    assert np.isnan(result.values["ndcg@3"]).tolist() == [True, False, False]
    assert result.values["auc"][1] == 0.5  # all alike
    assert result.details["n_users_without_targets"] == 1
    assert result.means["auc"] == pytest.approx((0.5 + 1) / 2)


def test_lists_give_catalogue_figures(parts):
    result = evaluate("arm", score, parts, "test", ["mrr"], lists=1)
    assert result.details["coverage"] == 2 / 6  # item 2 for user 0, item 0 for user 1
    # Before the test fold 0 1 2 3 were taken: 2 by one of three users with a history, 0 by one.
    assert result.details["novelty_bits"] == pytest.approx(np.log2(3))
    assert "coverage" not in evaluate("arm", score, parts, "test", ["mrr"], lists=0).details
    json.dumps(result.details)


def test_finished_lists_agree_with_the_scores_they_came_from():
    dataset = cycle_dataset(seed=3)
    parts = cut(dataset)
    scores = np.random.default_rng(0).permutation(dataset.n_users * dataset.n_items).astype(np.float32)
    scores = scores.reshape(dataset.n_users, dataset.n_items)
    ranks = fold_ranks(lambda u: scores[u], parts, "test", lists=8)
    ranking = Ranking(users=ranks.users, items=ranks.lists, scores=np.zeros(ranks.lists.shape, np.float32))
    names = ["ndcg@8", "recall@5", "map@8:capped", "mrr@8", "hit@1"]
    full = evaluate("arm", lambda u: scores[u], parts, "test", names, lists=4)
    history = parts.history("test")
    listed = evaluate_ranking("arm", ranking, parts.test, names, seen=history, lists=4)
    for name in names:
        np.testing.assert_array_equal(listed.values[name], full.values[name])
    for figure in ("coverage", "gini", "novelty_bits", "n_targets", "n_candidates", "seen", "list_length"):
        assert listed.details[figure] == full.details[figure]


def test_a_metric_longer_than_the_list_is_refused(parts):
    ranking = Ranking(
        users=np.array([0], np.int32), items=np.array([[2, 3]], np.int32), scores=np.zeros((1, 2), np.float32)
    )
    with pytest.raises(ConfigError, match="ndcg@3 needs lists of 3 items, and those of 'llm' have 2"):
        evaluate_ranking("llm", ranking, parts.test, ["ndcg@3"], seen=None)
    with pytest.raises(TypeError, match="seen"):
        evaluate_ranking("llm", ranking, parts.test, ["ndcg@2"])


def test_bad_options_are_named(parts):
    with pytest.raises(ConfigError, match="at least one metric"):
        evaluate("arm", score, parts, "test", [])
    with pytest.raises(ConfigError, match="unknown fold 'train'"):
        evaluate("arm", score, parts, "train", ["auc"])
    with pytest.raises(ConfigError, match="unknown seen='mask'"):
        evaluate("arm", score, parts, "test", ["auc"], seen="mask")
