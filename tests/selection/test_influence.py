import numpy as np
import pytest
import torch

from frugalrec.data.examples import examples
from frugalrec.errors import ConfigError, DataError
from frugalrec.recommenders import create
from frugalrec.selection.catalogue_losses import Asked
from frugalrec.selection.influence import Problem, risk_gradient, slopes
from frugalrec.selection.surrogate_losses import Softmax, transition_loss
from frugalrec.testing.toys import cycle_dataset

DATA = cycle_dataset(n_users=30, n_items=13, length=9)
SMALL = {"embedding_size": 8, "epochs": 2, "max_length": 6, "dropout": 0.3}
LOSSES = ["softmax", "expected-bce", "sampled-bce"]


def fitted(name):
    return create(name, seed=1, **SMALL).fit(DATA).network_


def problem_of(name="sasrec", parameters=".*", data=DATA, window=7):
    network = fitted(name).double()
    rows = examples(data, window=window, min_history=0, per_user="all").take(np.arange(2, 70))
    return Problem(network, rows, parameters=parameters, max_length=SMALL["max_length"])


def loop(problem, loss, direction=None):
    """Gradients of one row after another, by plain automatic differentiation."""
    named = dict(problem.network.named_parameters())
    chosen = [named[name] for name in problem.names]
    rows = problem.examples
    found = []
    for row in range(len(rows)):
        history = rows.history(row)[-problem.max_length :]
        if history.size == 0:
            found.append(None)
            continue
        items = torch.from_numpy(history.astype(np.int64))[None]
        state = problem.network.next_states(items, torch.tensor([history.size]))
        target = torch.tensor([int(rows.targets[row])])
        asked = Asked(users=rows.users[row : row + 1], targets=target, rows=np.array([row]))
        value = loss.values(state, problem.network.items.weight, asked).sum()
        found.append(torch.autograd.grad(value, chosen, allow_unused=True, materialize_grads=True))
    if direction is None:
        defined = [gradient for gradient in found if gradient is not None]
        return [sum(parts) / len(defined) for parts in zip(*defined, strict=True)]
    along = [direction[name] for name in problem.names]
    return np.array(
        [
            np.nan if one is None else sum(float((g * q).sum()) for g, q in zip(one, along, strict=True))
            for one in found
        ]
    )


def random_direction(problem, seed=3):
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in problem.chosen.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "caser", "dros", "bert4rec", "dcrec"])
@pytest.mark.parametrize("loss", LOSSES)
def test_slopes_and_risk_equal_a_loop_of_gradients(name, loss):
    problem = problem_of(name)
    loss = transition_loss(loss, DATA, problem.examples.users, seed=0)
    direction = random_direction(problem)
    found, wanted = slopes(problem, loss, direction), loop(problem, loss, direction)
    assert np.isnan(wanted).sum() == np.isnan(found).sum() > 0
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    risk = risk_gradient(problem, loss)
    for name_, value in zip(problem.names, loop(problem, loss), strict=True):
        torch.testing.assert_close(risk[name_], value, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", ["blocks.1.out.weight", "items.*", "(?!items).*"])
def test_a_subset_of_the_parameters(parameters):
    problem = problem_of(parameters=parameters)
    direction = random_direction(problem)
    np.testing.assert_allclose(
        slopes(problem, Softmax(), direction), loop(problem, Softmax(), direction), rtol=1e-5, atol=1e-6
    )
    for name, value in zip(problem.names, loop(problem, Softmax()), strict=True):
        torch.testing.assert_close(risk_gradient(problem, Softmax())[name], value, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_batch_size_order_and_padding_change_nothing(loss):
    problem = problem_of()
    rows = problem.examples
    one = transition_loss(loss, DATA, rows.users, seed=0)
    direction = random_direction(problem)
    wanted = slopes(problem, one, direction)
    for size in (1, 7, 64):
        np.testing.assert_allclose(
            slopes(problem, one, direction, batch_size=size), wanted, rtol=1e-6, atol=1e-7
        )
    some = np.array([5, 60, 2, 33])
    part = slopes(problem, one, direction, rows=some)
    np.testing.assert_allclose(part[some], wanted[some], rtol=1e-6, atol=1e-7)
    assert np.isnan(np.delete(part, some)).all()
    if loss == "sampled-bce":
        return  # a draw belongs to its row number
    order = np.random.default_rng(0).permutation(len(rows))
    moved = Problem(problem.network, rows.take(order), max_length=problem.max_length)
    again = transition_loss(loss, DATA, rows.users[order], seed=0)
    np.testing.assert_allclose(slopes(moved, again, direction), wanted[order], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_expected_loss_is_the_mean_of_sampled_ones():
    problem = problem_of()
    direction = random_direction(problem)
    users = problem.examples.users
    expected = slopes(problem, transition_loss("expected-bce", DATA, users, seed=0), direction)
    draws = [
        slopes(problem, transition_loss("sampled-bce", DATA, users, seed=s), direction) for s in range(100)
    ]
    error = np.std(draws, axis=0) / np.sqrt(len(draws))
    outside = np.abs(np.mean(draws, axis=0) - expected) > 5 * error + 1e-6
    assert not outside[~np.isnan(expected)].any()


def test_progress_counts_rows():
    problem, told = problem_of(), []
    slopes(problem, Softmax(), random_direction(problem), batch_size=16, progress=lambda *p: told.append(p))
    assert told[-1][0] == (np.diff(problem.examples.indptr) > 0).sum()
    assert [p[0] for p in told] == sorted(p[0] for p in told)


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="no parameter matches 'head'.*items.weight"):
        problem_of(parameters="head")
    with pytest.raises(ConfigError, match="unknown loss 'hinge'"):
        transition_loss("hinge", DATA, np.zeros(1, dtype=np.int32), seed=0)
    problem = problem_of()
    empty = problem.examples.take(np.flatnonzero(np.diff(problem.examples.indptr) == 0))
    with pytest.raises(DataError, match="no row has a history"):
        risk_gradient(Problem(problem.network, empty), Softmax())
