from dataclasses import replace

import numpy as np
import pytest
import torch

from frugalrec.data.examples import examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders import create as recommender
from frugalrec.recommenders.networks import SequenceNetwork
from frugalrec.selection import create, row_gradients
from frugalrec.selection.influence import Problem
from frugalrec.selection.row_gradients import row_gradient_norms
from frugalrec.testing.toys import cycle_dataset

DATA = cycle_dataset(n_users=40, n_items=12, length=9, noise=0.4)
ROWS = examples(DATA, window=7, min_history=0, per_user="all")  # some without a history
NETWORKS = {
    "sasrec": {},
    "gru4rec": {"layers": 2},
    "caser": {"window": 3},
    "dros": {"loss": "bce"},
    "bert4rec": {},
    "dcrec": {"neighbours": 4},
}


def fitted(name, seed=0, **options):
    shape = {"epochs": 2, "embedding_size": 8, "max_length": 5, "batch_size": 8}
    return recommender(name, seed=seed, **shape | NETWORKS[name] | options).fit(DATA)


def naive_norm(model, row):
    """One row's loss by a forward pass of its own, and the norm of all of autograd's gradients."""
    history = torch.from_numpy(ROWS.history(row)[-model.max_length :].astype(np.int64))
    state = model.network_.next_states(history[None], torch.tensor([history.shape[0]]))
    logits = state @ model.network_.items.weight.T
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([int(ROWS.targets[row])]))
    parameters = [one for one in model.network_.parameters() if one.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return sum(float(g.double().square().sum()) for g in gradients if g is not None) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_norms_equal_a_loop_over_rows(name):
    model = fitted(name)
    scores = create("grand", surrogates=[model]).score(ROWS, DATA)
    lengths = np.diff(ROWS.indptr)
    assert np.array_equal(np.isnan(scores), lengths == 0) and (lengths == 0).any()
    repeated = [row for row in range(len(ROWS)) if len(set(ROWS.history(row)[-5:])) < min(lengths[row], 5)]
    assert repeated  # histories that hold an item twice
    for row in [*np.flatnonzero(lengths > 0)[::17], *repeated[::5]]:
        assert scores[row] == pytest.approx(naive_norm(model, row), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "dcrec"])
def test_batches_and_order_play_no_part(name):
    some = ROWS.take(np.arange(0, len(ROWS), 9))
    problem = Problem(fitted(name).network_, some, max_length=5)
    together, alone = row_gradient_norms(problem), row_gradient_norms(problem, batch_size=1)
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    order = np.random.default_rng(0).permutation(len(some))
    shuffled = row_gradient_norms(Problem(problem.network, some.take(order), max_length=5), batch_size=7)
    np.testing.assert_allclose(shuffled, together[order], rtol=1e-4)


def test_what_cannot_be_vectorised_gets_a_pass_a_row(monkeypatch):
    some = ROWS.take(np.arange(0, len(ROWS), 9))
    problem = Problem(fitted("sasrec").network_, some, max_length=5)
    expected = row_gradient_norms(problem)

    def refused(function):
        def call(*arguments):
            raise RuntimeError("no batching rule")

        return call

    monkeypatch.setattr(row_gradients, "vmap", refused)
    np.testing.assert_allclose(row_gradient_norms(problem), expected, rtol=1e-4)


def test_a_network_that_reads_the_table_past_its_look_ups_is_refused():
    class Bypass(SequenceNetwork):
        def next_states(self, items, lengths):
            return self.items(items).mean(dim=1) + self.items.weight[3]

    network = Bypass(DATA.n_items, embedding_size=8)
    with pytest.raises(ConfigError, match="gradients of Bypass have no closed form.*by calling `items` only"):
        row_gradient_norms(Problem(network, ROWS, max_length=5))


def test_a_network_of_a_table_alone_has_its_closed_form():
    class Mean(SequenceNetwork):
        def next_states(self, items, lengths):
            inside = torch.arange(items.shape[1]) < lengths[:, None]
            return (self.items(items) * inside[..., None]).sum(dim=1) / lengths[:, None]

    model = fitted("sasrec")
    model.network_ = Mean(DATA.n_items, embedding_size=8)
    scores = create("grand", surrogates=[model]).score(ROWS, DATA)
    for row in np.flatnonzero(~np.isnan(scores))[::29]:
        assert scores[row] == pytest.approx(naive_norm(model, row), rel=1e-4)


def test_the_network_is_left_as_it_was():
    model = fitted("bert4rec")
    before = {name: value.clone() for name, value in model.network_.state_dict().items()}
    create("grand", surrogates=[model]).score(ROWS, DATA)
    assert all(torch.equal(before[name], value) for name, value in model.network_.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in model.network_.parameters())
    assert not model.network_.items._forward_hooks


@pytest.mark.slow
def test_surprising_targets_move_the_network_more():
    # On a cycle without noise the next item is certain, unless a target is exchanged.
    data = cycle_dataset(n_users=60, n_items=6, length=8, noise=0.0)
    rows = examples(data, window=4)
    model = recommender("sasrec", epochs=30, embedding_size=16, batch_size=16).fit(data)
    wrong = rows.targets.copy()
    wrong[::2] = (wrong[::2] + 3) % 6
    scores = create("grand", surrogates=[model]).score(replace(rows, targets=wrong), data)
    assert scores[::2].min() > scores[1::2].max()


@pytest.mark.slow
def test_several_surrogates_are_averaged():
    models = [fitted("sasrec", seed=s) for s in (0, 1)]
    single = [create("grand", surrogates=[one]).score(ROWS, DATA).astype(np.float64) for one in models]
    told = []
    both = create("grand", surrogates=models, progress=lambda *p: told.append(p)).score(ROWS, DATA)
    np.testing.assert_allclose(both, np.mean([one / np.nanstd(one) for one in single], axis=0), rtol=1e-4)
    assert told and told[-1][1] == 2 * len(ROWS)


def test_an_untrained_surrogate_or_a_model_without_gradients_is_named():
    with pytest.raises(DataError, match="grand: the surrogate sasrec was never trained"):
        create("grand", surrogates=[recommender("sasrec")]).score(ROWS, DATA)
    with pytest.raises(ConfigError, match="ease is no sequence model"):
        create("grand", surrogates=[recommender("ease").fit(DATA)]).score(ROWS, DATA)
    with pytest.raises(ConfigError, match="depth"):
        create("grand", depth=3)
