"""The yes/no baselines: encoding, loss and logits against plain loops, invariances, and learning."""

import dataclasses
import math

import numpy as np
import pytest

from frugalrec.data.readers.tallrec import PointwiseRows
from frugalrec.errors import ConfigError, DataError, NotFittedError
from frugalrec.evaluation.pointwise import auc
from frugalrec.recommenders import feedback_rows
from frugalrec.rng import generator

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
from frugalrec.recommenders.feedback import FEEDBACK_MODELS, FeedbackConfig, FeedbackModel  # noqa: E402
from frugalrec.recommenders.feedback_network import pointwise_loss, robust_group_loss  # noqa: E402

SMALL = FeedbackConfig(embedding_size=8, layers=2, horizontal=2, vertical=2, window=3, epochs=2, threads=1)


class Embedder:
    """A vector of random numbers a text, the same each time."""

    width = 5
    asked = 0

    def embed(self, texts):
        self.asked += 1
        rows = [generator(0, text).standard_normal(self.width) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.width)


def draw(n, seed=0, catalogue=20, decide=None):
    """Rows of random titles; the label is random, or what `decide` makes of (likes, target)."""
    rng = generator(seed, "rows")
    liked, disliked, targets, labels = [], [], [], []
    for _ in range(n):
        titles = [f"film {i}" for i in rng.permutation(catalogue)[: 1 + rng.integers(8)]]
        cut = int(rng.integers(len(titles)))
        liked.append(tuple(titles[1 : cut + 1]))
        disliked.append(tuple(titles[cut + 1 :]))
        targets.append(titles[0])
        labels.append(rng.random() < 0.5 if decide is None else decide(liked[-1], disliked[-1], titles[0]))
    return PointwiseRows(
        liked=tuple(liked), disliked=tuple(disliked), targets=tuple(targets), labels=np.array(labels, bool)
    )


def model(name, config=SMALL, **changes):
    return FeedbackModel(name, dataclasses.replace(config, **changes), embedder=Embedder())


@pytest.mark.parametrize("m", range(5))
@pytest.mark.parametrize("n", range(5))
def test_two_lists_are_spread_evenly(m, n):
    liked, disliked = [f"l{i}" for i in range(m)], [f"d{i}" for i in range(n)]
    merged = feedback_rows.merged(liked, disliked)
    assert [t for t, like in merged if like] == liked and [t for t, like in merged if not like] == disliked
    for cut in range(m + n + 1):  # every beginning holds its share of likes, to within one
        likes = sum(like for _, like in merged[:cut])
        assert abs(likes - cut * m / max(m + n, 1)) <= 1


def test_rows_become_arrays():
    rows = PointwiseRows(
        liked=(("b", "a"), (), ("z",)),
        disliked=(("c",), (), ()),
        targets=("a", "c", "nowhere"),
        labels=np.array([True, False, True]),
    )
    codes = {"a": 1, "b": 2, "c": 3}
    encoded = feedback_rows.encode(rows, codes, max_length=2)
    assert encoded.titles.tolist() == [[3, 1], [0, 0], [0, 0]]
    assert encoded.feedback.tolist() == [[0, 1], [0.5, 0.5], [1, 0.5]]
    assert encoded.lengths.tolist() == [2, 1, 1]
    assert encoded.targets.tolist() == [1, 3, 0] and encoded.labels.tolist() == [1, 0, 1]
    assert feedback_rows.encode(rows, codes, max_length=9).titles[0].tolist() == [2, 3, 1]
    assert feedback_rows.title_codes(rows) == {"a": 1, "b": 2, "c": 3, "nowhere": 4, "z": 5}


@pytest.mark.parametrize("name", FEEDBACK_MODELS)
def test_logits_are_those_of_one_row_at_a_time(name):
    fitted = model(name).fit(draw(30))
    rows = draw(25, seed=1, catalogue=30)
    scores = fitted.score(rows)
    network, naive = fitted.network_, []
    for liked, disliked, target in zip(rows.liked, rows.disliked, rows.targets, strict=True):
        history = feedback_rows.merged(liked, disliked) or [(None, 0.5)]
        with torch.no_grad():
            states = torch.stack(
                [
                    network.join(torch.cat([vector(fitted, title), torch.tensor([float(like)])]))
                    for title, like in history
                ]
            )
            last = network.body.encode(states[None])[0, -1]
            naive.append(float(last @ vector(fitted, target) + network.bias))
    np.testing.assert_allclose(scores, naive, atol=1e-5)
    assert scores.dtype == np.float32 and np.ptp(scores) > 1e-3
    order = generator(2).permutation(len(rows))
    np.testing.assert_allclose(fitted.score(rows.take(order)), scores[order], atol=1e-5)


def vector(fitted, title):
    network = fitted.network_
    if title is not None and network.project is not None:
        return network.project(torch.from_numpy(fitted.embedder.embed([title])[0]))
    return network.body.items.weight[fitted.codes_.get(title, 0) if network.project is None else 0]


@pytest.mark.parametrize("name", FEEDBACK_MODELS)
def test_a_seed_decides_everything(name):
    rows = draw(40)
    first, again, other = (model(name, seed=seed).fit(rows).score(rows) for seed in (3, 3, 4))
    assert np.array_equal(first, again) and not np.allclose(first, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEEDBACK_MODELS)
def test_a_rule_is_learned(name):
    # Yes for about half of the titles, whoever asks; a title's vector says which.
    rule = lambda liked, disliked, target: Embedder().embed([target])[0, 0] > 0  # noqa: E731
    options = {"embedding_size": 16, "epochs": 20, "learning_rate": 0.01, "dropout": 0.0, "layers": 1}
    fitted = model(name, **options).fit(draw(200, decide=rule))
    test = draw(200, seed=1, decide=rule)
    assert auc(fitted.score(test), test.labels) > 0.9
    assert fitted.history_[-1]["loss"] < 0.5 * fitted.history_[0]["loss"]


@pytest.mark.slow
def test_feedback_is_seen():
    # Yes where more was liked than disliked: titles say nothing about it, and none is known.
    rule = lambda liked, disliked, target: len(liked) > len(disliked)  # noqa: E731
    train, test = draw(300, decide=rule), draw(200, seed=1, decide=rule)
    unknown = dataclasses.replace(test, targets=tuple(f"new {i}" for i in range(len(test))))
    fitted = model("gru4rec", epochs=20, learning_rate=0.01, dropout=0.0, layers=1).fit(train)
    assert auc(fitted.score(test), test.labels) > 0.9
    assert auc(fitted.score(unknown), test.labels) > 0.9


def test_unseen_titles_share_one_vector_for_ids_and_have_their_own_for_text():
    row = PointwiseRows(liked=(("film 1",),), disliked=((),), targets=("x",), labels=np.array([True]))
    other = dataclasses.replace(row, targets=("y",))
    for name, same in (("sasrec", True), ("gru-bert", False)):
        fitted = model(name).fit(draw(30))
        assert np.allclose(fitted.score(row), fitted.score(other), atol=1e-6) is same


def test_validation_keeps_the_best_epoch():
    train, valid = draw(60), draw(60, seed=1)
    fitted = model("gru4rec", epochs=30, patience=4).fit(train, valid)
    values = [record["valid_auc"] for record in fitted.history_]
    assert fitted.best_epoch_ == 1 + int(np.argmax(values))
    assert len(values) == min(30, fitted.best_epoch_ + 4)
    assert auc(fitted.score(valid), valid.labels) == max(values)
    # The epochs are those of a training without validation.
    plain = model("gru4rec", epochs=fitted.best_epoch_).fit(train)
    assert np.array_equal(plain.score(valid), fitted.score(valid))
    assert np.isnan(plain.history_[0]["valid_auc"])


def test_the_labels_of_scored_rows_do_not_matter():
    rows = draw(20)
    fitted = model("caser").fit(rows)
    flipped = dataclasses.replace(rows, labels=~rows.labels)
    assert np.array_equal(fitted.score(flipped), fitted.score(rows))
    assert fitted.score(rows.take(np.array([], int))).shape == (0,)


def test_losses_by_hand():
    logits, labels = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.0, 0.0])
    chances = [1 / (1 + math.exp(-x)) for x in logits.tolist()]
    errors = [(p - y) ** 2 for p, y in zip(chances, labels.tolist(), strict=True)]
    entropies = [-math.log(p if y else 1 - p) for p, y in zip(chances, labels.tolist(), strict=True)]
    assert pointwise_loss(logits, labels, "mse").tolist() == pytest.approx(errors, rel=1e-5)
    assert pointwise_loss(logits, labels, "bce").tolist() == pytest.approx(entropies, rel=1e-5)
    groups = torch.tensor([2, 0, 2])  # group 1 is empty
    means = {0: errors[1], 2: (errors[0] + errors[2]) / 2}
    for temperature in (0.05, 1.0):
        expected = temperature * math.log(
            1 / 3 * math.exp(means[0] / temperature) + 2 / 3 * math.exp(means[2] / temperature)
        )
        found = float(robust_group_loss(torch.tensor(errors), groups, 3, temperature))
        assert found == pytest.approx(expected, rel=1e-5)
    # A high temperature is the mean over rows, a low one the worst group.
    assert float(robust_group_loss(torch.tensor(errors).double(), groups, 3, 1e4)) == pytest.approx(
        np.mean(errors), rel=1e-3
    )
    assert float(robust_group_loss(torch.tensor(errors), groups, 3, 1e-3)) == pytest.approx(
        max(means.values()), abs=2e-3
    )


def test_robustness_changes_what_is_learned():
    rows = draw(40)
    plain, robust = (model("dros", robustness=r).fit(rows).score(rows) for r in (0.0, 5.0))
    assert not np.allclose(plain, robust)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "mse or bce, not 'hinge'"),
        ({"dropout": 1.0}, "below 1, not 1.0"),
        ({"unknown_rate": -0.1}, "at least 0"),
        ({"epochs": 0}, "epochs must be above 0, not 0"),
        ({"robustness": -1.0}, "must not be negative"),
        ({"embedding_size": 9}, "2 does not divide 9"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        model("sasrec", **options).fit(draw(5))


def test_misuse_is_explained():
    rows = draw(5)
    with pytest.raises(ConfigError, match=r"unknown baseline 'bert'; there are: gru4rec"):
        model("bert").fit(rows)
    with pytest.raises(ConfigError, match="give an embedder"):
        FeedbackModel("gru-bert", SMALL).fit(rows)
    with pytest.raises(NotFittedError, match="call fit first"):
        model("sasrec").score(rows)
    with pytest.raises(DataError, match="no rows"):
        model("sasrec").fit(rows.take(np.array([], int)))
    one_label = dataclasses.replace(rows, labels=np.ones(5, dtype=bool))
    with pytest.raises(DataError, match="both labels"):
        model("sasrec").fit(rows, one_label)
