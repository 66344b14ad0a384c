import numpy as np
import pytest

from frugalrec.data.examples import examples
from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders import create as recommender
from frugalrec.selection import create
from frugalrec.selection.diagnostics import agreement
from frugalrec.selection.surrogates import next_events
from frugalrec.testing.toys import cycle_dataset

PARTS = split(cycle_dataset(n_users=60, n_items=12, length=10, noise=0.3), "leave-last-out")
ROWS = examples(PARTS.train, window=6, min_history=1)
SMALL = {"embedding_size": 8, "epochs": 3, "max_length": 6}


@pytest.fixture(scope="module")
def surrogate():
    return recommender("sasrec", **SMALL).fit(PARTS.train, PARTS.valid)


def test_el2n_is_the_norm_of_the_error(surrogate):
    scores = create("el2n", surrogates=[surrogate]).score(ROWS, PARTS.train)
    for row in range(0, len(ROWS), 7):
        history = ROWS.history(row)[-6:]
        logits = logits_after(surrogate, history)
        error = np.exp(logits - logits.max())
        error /= error.sum()
        error[ROWS.targets[row]] -= 1
        assert scores[row] == pytest.approx(np.linalg.norm(error), rel=1e-4)


def logits_after(model, history):
    import torch

    with torch.no_grad():
        state = model.network_.next_states(
            torch.from_numpy(history.astype(np.int64))[None], torch.tensor([history.size])
        )
        return (state @ model.network_.items.weight.T)[0].double().numpy()


@pytest.mark.parametrize("loss", ["softmax", "expected-bce"])
def test_two_scorings_of_one_surrogate_are_identical(surrogate, loss):
    one, two = (
        create("influence", surrogates=[surrogate], valid=PARTS.valid, loss=loss, seed=seed).score(
            ROWS, PARTS.train
        )
        for seed in (0, 1)
    )
    assert np.array_equal(one, two)


def test_sampled_scores_hang_on_the_seed(surrogate):
    one, two = (
        create("influence", surrogates=[surrogate], loss="sampled-bce", seed=seed).score(ROWS, PARTS.train)
        for seed in (0, 1)
    )
    assert agreement(one, two) < 0.95


def test_a_row_helps_the_risk_of_its_own_transition(surrogate):
    # Validation made of the rows themselves: on average a row's gradient agrees with the mean gradient.
    scores = create("influence", surrogates=[surrogate], target="train").score(ROWS, PARTS.train)
    assert np.nanmean(scores) > 0  # the mean of <g_i, v> is |v|^2
    scorer = create("influence", surrogates=[surrogate], target="train")
    total = scorer.score(ROWS, PARTS.train).astype(np.float64).mean()
    assert total == pytest.approx(scorer.evidence_[0]["risk_gradient_norm"] ** 2, rel=1e-3)


def test_curvature_leaves_its_evidence(surrogate):
    scorer = create(
        "influence",
        surrogates=[surrogate],
        valid=PARTS.valid,
        curvature="gauss-newton",
        curvature_rows=30,
        parameters="norm.*",
    )
    scores = scorer.score(ROWS, PARTS.train)
    plain = create("influence", surrogates=[surrogate], valid=PARTS.valid, parameters="norm.*").score(
        ROWS, PARTS.train
    )
    (evidence,) = scorer.evidence_
    assert evidence["residual"] < 2e-3 and evidence["largest_eigenvalue"] > 0
    assert evidence["damping"] == pytest.approx(0.1 * evidence["largest_eigenvalue"])
    assert 0 < agreement(scores, plain) < 1


def test_several_surrogates_are_averaged_on_one_scale(surrogate):
    other = recommender("sasrec", **SMALL | {"seed": 5}).fit(PARTS.train, PARTS.valid)
    single = [
        create("influence", surrogates=[one], valid=PARTS.valid).score(ROWS, PARTS.train).astype(np.float64)
        for one in (surrogate, other)
    ]
    both = create("influence", surrogates=[surrogate, other], valid=PARTS.valid).score(ROWS, PARTS.train)
    np.testing.assert_allclose(
        both, np.mean([one / one.std() for one in single], axis=0), rtol=1e-4, atol=1e-5
    )
    told = []
    create("el2n", surrogates=[surrogate, other], progress=lambda *p: told.append(p)).score(ROWS, PARTS.train)
    assert told[-1] == (2 * len(ROWS), 2 * len(ROWS))


def test_ccs_drops_the_hardest_and_covers_the_rest(surrogate):
    scorer = create("ccs", surrogates=[surrogate], groups=5)
    scores = scorer.score(ROWS, PARTS.train)
    kept = scorer.choose(scores, 20, seed=1)
    assert kept.kept.size == 20 and kept.scorer == "ccs"
    hardest = np.argsort(-scores, kind="stable")[: int(0.1 * len(ROWS)) - 1]
    assert not np.isin(hardest, kept.kept).any()


def test_next_events_are_the_first_of_validation():
    rows = next_events(PARTS.train, PARTS.valid, 4)
    for row, user in enumerate(rows.users):
        assert rows.targets[row] == PARTS.valid.history(int(user))[0]
        assert rows.history(row).tolist() == PARTS.train.history(int(user))[-4:].tolist()


def test_bad_surrogates_are_named(surrogate):
    with pytest.raises(DataError, match="never trained"):
        create("influence", surrogates=[recommender("sasrec")]).score(ROWS, PARTS.train)
    with pytest.raises(ConfigError, match="ease is no sequence model"):
        create("el2n", surrogates=[recommender("ease").fit(PARTS.train)]).score(ROWS, PARTS.train)
    other = cycle_dataset(n_users=20, n_items=5)
    with pytest.raises(DataError, match="knows 12 items, the data"):
        create("el2n", surrogates=[surrogate]).score(examples(other), other)
    with pytest.raises(ConfigError, match="needs the validation fold"):
        create("influence", surrogates=[surrogate], target="valid").score(ROWS, PARTS.train)
    with pytest.raises(ConfigError, match="unknown curvature 'kfac'"):
        create("influence", surrogates=[surrogate], curvature="kfac").score(ROWS, PARTS.train)
    with pytest.raises(ConfigError, match="n_surrogates"):
        create("influence", n_surrogates=0).score(ROWS, PARTS.train)
    with pytest.raises(ConfigError, match="depth"):
        create("influence", depth=3)
