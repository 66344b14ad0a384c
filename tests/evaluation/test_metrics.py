import itertools

import numpy as np
import pytest
import pytrec_eval
from coded import dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score, roc_auc_score

from frugalrec.errors import ConfigError
from frugalrec.evaluation.metrics import METRICS, parse_metric
from frugalrec.evaluation.ranks import ranks_from_ranking, target_ranks
from frugalrec.types import Ranking


def ranked(scores, targets):
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    return target_ranks(lambda u: scores[u], np.arange(len(scores)), dataset(targets, scores.shape[1]))


def value(name, scores, targets):
    return parse_metric(name)(ranked(scores, [targets]))[0]


def textbook(kind, dialect, k, order, relevant):
    """Compute a metric from one strict order, by loops."""
    k = len(order) if k is None else k
    hits = [item in relevant for item in order[:k]]
    n, capped = len(relevant), min(len(relevant), k)
    if kind == "recall":
        return sum(hits) / (n if dialect == "relevant" else capped)
    if kind == "precision":
        return sum(hits) / k
    if kind == "hit":
        return float(any(hits))
    if kind == "mrr":
        return 1 / (hits.index(True) + 1) if any(hits) else 0.0
    if kind == "ndcg":
        gain = sum(1 / np.log2(place + 1) for place, hit in enumerate(hits, 1) if hit)
        top = capped if dialect == "achievable" else k
        return gain / sum(1 / np.log2(place + 1) for place in range(1, top + 1))
    if kind == "map":
        total = sum(sum(hits[:place]) / place for place, hit in enumerate(hits, 1) if hit)
        return total / {"relevant": n, "capped": capped, "all-k": k}[dialect]
    pairs = [(a, b) for a, b in itertools.product(order, order) if a in relevant and b not in relevant]
    return sum(order.index(a) < order.index(b) for a, b in pairs) / len(pairs) if pairs else np.nan


def names(k):
    for kind, row in METRICS.items():
        for dialect in row.dialects:
            if row.cut != "none":
                yield kind, dialect, k, f"{kind}@{k}:{dialect}"
            if row.cut == "none" or (row.cut == "optional" and dialect != "all-k"):
                yield kind, dialect, None, f"{kind}:{dialect}"


def test_hand_computed_example():
    # Six items, scores fall with the code; held out are items 1 (place 2) and 4 (place 5); k = 3.
    scores, targets = [6, 5, 4, 3, 2, 1], [4, 1]
    expected = {
        "recall@3": 1 / 2,  # one of two
        "recall@1:capped": 0 / 1,
        "recall@2:capped": 1 / 2,
        "precision@3": 1 / 3,
        "hit@3": 1.0,
        "hit@1": 0.0,
        "mrr": 1 / 2,
        "mrr@1": 0.0,
        "ndcg@3": (1 / np.log2(3)) / (1 + 1 / np.log2(3)),  # ideal: both on top, places 1 and 2
        "ndcg@3:all-k": (1 / np.log2(3)) / (1 + 1 / np.log2(3) + 1 / 2),
        "ndcg": (1 / np.log2(3) + 1 / np.log2(6)) / (1 + 1 / np.log2(3)),
        "map@3": (1 / 2) / 2,
        "map@5": (1 / 2 + 2 / 5) / 2,
        "map@1:capped": 0.0,
        "map@3:all-k": (1 / 2) / 3,
        "auc": (3 + 1) / 8,  # item 1 beats 2 3 5 of 0 2 3 5, item 4 beats 5
    }
    for name, number in expected.items():
        assert value(name, scores, targets) == pytest.approx(number, abs=1e-12), name


def test_a_tie_across_the_cut_counts_its_share():
    # One item is ahead, four tie at places 2 to 5, one of them held out, k = 3: two of the four places
    # lie inside, so recall is 2/4, DCG (1/log2(3) + 1/log2(4)) / 4, MRR (1/2 + 1/3) / 4.
    scores, targets = [9, 5, 5, 5, 5, 1], [3]
    assert value("recall@3", scores, targets) == pytest.approx(2 / 4)
    assert value("ndcg@3", scores, targets) == pytest.approx((1 / np.log2(3) + 1 / np.log2(4)) / 4)
    assert value("mrr@3", scores, targets) == pytest.approx((1 / 2 + 1 / 3) / 4)
    assert value("auc", scores, targets) == pytest.approx((1 + 3 * 0.5) / 5)


@pytest.mark.slow
@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=6),
    st.sets(st.integers(0, 5), min_size=1),
    st.integers(1, 7),
)
@settings(deadline=None, max_examples=80)
def test_ties_give_the_mean_over_all_orders(scores, relevant, k):
    relevant = {item % len(scores) for item in relevant}
    orders = [
        list(order)
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    for kind, dialect, cut, name in names(k):
        expected = np.mean([textbook(kind, dialect, cut, order, relevant) for order in orders])
        assert value(name, scores, sorted(relevant)) == pytest.approx(expected, abs=1e-12, nan_ok=True), name


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pytrec_eval_without_ties(seed):
    rng = np.random.default_rng(seed)
    n_users, n_items = 30, 50
    scores = rng.permuted(np.arange(n_users * n_items).reshape(n_users, n_items), axis=1)
    targets = [rng.choice(n_items, size=rng.integers(1, 15), replace=False).tolist() for _ in range(n_users)]
    truth = {f"q{u}": {f"d{i}": 1 for i in row} for u, row in enumerate(targets)}
    run = {f"q{u}": {f"d{i}": float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)}
    measures = {"ndcg": "ndcg", "map": "map", "recip_rank": "mrr"}
    for k in (1, 5, 10, 20):
        measures |= {
            f"ndcg_cut_{k}": f"ndcg@{k}",
            f"map_cut_{k}": f"map@{k}",
            f"recall_{k}": f"recall@{k}",
            f"P_{k}": f"precision@{k}",
            f"success_{k}": f"hit@{k}",
        }
    evaluator = pytrec_eval.RelevanceEvaluator(
        truth,
        {"ndcg", "map", "recip_rank", "ndcg_cut.1,5,10,20", "map_cut.1,5,10,20"}
        | {"recall.1,5,10,20", "P.1,5,10,20", "success.1,5,10,20"},
    )
    theirs = evaluator.evaluate(run)
    ranks = ranked(scores, targets)
    for name, ours in measures.items():
        expected = [theirs[f"q{u}"][name] for u in range(n_users)]
        np.testing.assert_allclose(parse_metric(ours)(ranks), expected, atol=1e-9, err_msg=name)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_equal_to_scikit_learn_with_ties(seed, levels, k):
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=25).astype(float)
    labels = np.zeros(25)
    labels[rng.choice(25, size=rng.integers(1, 8), replace=False)] = 1
    targets = np.flatnonzero(labels).tolist()
    assert value("auc", scores, targets) == pytest.approx(roc_auc_score(labels, scores))
    assert value(f"ndcg@{k}", scores, targets) == pytest.approx(ndcg_score([labels], [scores], k=k))
    strict = scores + 1e-3 * rng.permutation(25)
    assert value("map", strict, targets) == pytest.approx(average_precision_score(labels, strict))


def test_all_scores_alike_earn_what_chance_earns():
    ranks = ranked(np.zeros((1, 40)), [[3, 8, 21]])
    assert parse_metric("recall@10")(ranks)[0] == pytest.approx(10 / 40)
    assert parse_metric("auc")(ranks)[0] == pytest.approx(0.5)


def test_users_without_targets_are_undefined_and_misses_are_zero():
    users = np.arange(2, dtype=np.int32)
    lists = Ranking(
        users=users, items=np.array([[1, 2], [1, 2]], np.int32), scores=np.zeros((2, 2), np.float32)
    )
    ranks = ranks_from_ranking(lists, dataset([[5], []], 8))
    for _, _, _, name in names(2):
        if name.startswith("auc"):
            with pytest.raises(ConfigError, match="1 are not on their cut list"):
                parse_metric(name)(ranks)
            continue
        values = parse_metric(name)(ranks)
        assert values[0] == 0, name
        assert np.isnan(values[1]), name


def test_auc_without_negatives_is_undefined():
    assert np.isnan(value("auc", [1, 2], [0, 1]))


def test_capped_and_achievable_reach_one():
    scores, targets = [5, 4, 3, 2, 1], [0, 1, 2]
    for name in ("recall@2:capped", "ndcg@2", "map@2:capped", "precision@2", "mrr", "map", "ndcg", "auc"):
        assert value(name, scores, targets) == pytest.approx(1.0), name
    assert value("recall@2", scores, targets) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bleu@4", "choose among recall@k, precision@k, hit@k, ndcg, mrr, map, auc"),
        ("ndcg@ten", "unknown metric"),
        ("", "unknown metric"),
        ("recall", "needs a list length"),
        ("ndcg@0", "needs a list length"),
        ("ndcg:all-k", "needs a list length"),
        ("auc@10", "takes no list length"),
        ("ndcg@10:rectools", "knows the dialects achievable, all-k"),
    ],
)
def test_unknown_names_are_explained(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_metric(name)


def test_every_table_row_runs_in_every_dialect():
    ranks = ranked([[3, 2, 1, 0]], [[1]])
    seen = set()
    for kind, _, _, name in names(2):
        assert 0 <= parse_metric(name)(ranks)[0] <= 1
        seen.add(kind)
    assert seen == set(METRICS)
