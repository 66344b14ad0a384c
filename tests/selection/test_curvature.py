import numpy as np
import pytest
import torch
from torch import nn

from frugalrec.data.examples import examples
from frugalrec.errors import ConfigError
from frugalrec.recommenders import create
from frugalrec.recommenders.networks import SequenceNetwork
from frugalrec.selection.catalogue_losses import Asked
from frugalrec.selection.curvature import gauss_newton_product, hessian_product, largest_eigenvalue, solve
from frugalrec.selection.influence import Problem, risk_gradient, slopes
from frugalrec.selection.surrogate_losses import Softmax, transition_loss
from frugalrec.testing.toys import cycle_dataset

DATA = cycle_dataset(n_users=20, n_items=5, length=6)


class Linear(SequenceNetwork):
    """A convex surrogate: the state is one number per item, the scores are ``state @ weight``."""

    def __init__(self, n_items):
        super().__init__(n_items, n_items)
        self.items.weight.data.copy_(torch.eye(n_items))
        self.items.weight.requires_grad_(False)
        self.head = nn.Parameter(torch.zeros(n_items, n_items, dtype=torch.float64))
        self.double()

    def encode(self, embedded):
        return embedded.cumsum(1) @ self.head


def flat(vector):
    return torch.cat([value.reshape(-1) for value in vector.values()])


def unflat(vector, like):
    parts, start = {}, 0
    for name, value in like.items():
        parts[name] = vector[start : start + value.numel()].view(value.shape)
        start += value.numel()
    return parts


def dense(product, like):
    size = flat(like).numel()
    eye = torch.eye(size, dtype=torch.float64)
    return torch.stack([flat(product(unflat(row, like))) for row in eye])


def rows():
    return examples(DATA, window=4, min_history=1, per_user="all")


def small_problem(parameters="blocks.0.out.bias|norm.*"):
    network = create("sasrec", embedding_size=4, layers=1, heads=1, epochs=2, seed=2).fit(DATA).network_
    return Problem(network.double(), rows().take(np.arange(10)), parameters=parameters)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "expected-bce"])
def test_products_equal_the_dense_matrices(loss):
    problem = small_problem()
    every = np.arange(len(problem.examples))
    loss = transition_loss(loss, DATA, problem.examples.users, seed=0)
    (batch,) = problem.batches(10_000)

    def mean(vector):
        states, table = problem.at(unflat(vector, problem.chosen), batch)
        return loss.values(states, table, batch.asked).mean()

    hessian = torch.autograd.functional.hessian(mean, flat(problem.chosen))
    torch.testing.assert_close(
        dense(hessian_product(problem, loss, every), problem.chosen), hessian, rtol=1e-6, atol=1e-9
    )
    newton = dense(gauss_newton_product(problem, loss, every), problem.chosen)
    values = torch.linalg.eigvalsh((newton + newton.T) / 2)
    torch.testing.assert_close(newton, newton.T, rtol=1e-6, atol=1e-9)
    assert values.min() > -1e-9

    def scores(vector):
        states, table = problem.at(unflat(vector, problem.chosen), batch)
        return states @ table.T

    jacobian = torch.autograd.functional.jacobian(scores, flat(problem.chosen))
    logits = scores(flat(problem.chosen)).detach()
    wanted = torch.zeros_like(newton)
    for row in range(logits.shape[0]):

        def one(z, row=row):
            part = slice(row, row + 1)
            asked = Asked(
                users=batch.asked.users[part], targets=batch.asked.targets[part], rows=batch.asked.rows[part]
            )
            eye = torch.eye(z.shape[0], dtype=z.dtype)
            return loss.values(z[None], eye, asked)[0]

        bend = torch.autograd.functional.hessian(one, logits[row])
        wanted += jacobian[row].T @ bend @ jacobian[row] / logits.shape[0]
    torch.testing.assert_close(newton, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_eigenvalue_and_solution_equal_linear_algebra():
    problem = small_problem()
    product = gauss_newton_product(problem, Softmax(), np.arange(len(problem.examples)))
    matrix = dense(product, problem.chosen)
    top = float(torch.linalg.eigvalsh((matrix + matrix.T) / 2).max())
    assert largest_eigenvalue(product, problem.chosen, iterations=100, tolerance=1e-8) == pytest.approx(
        top, rel=1e-4
    )
    v = risk_gradient(problem, Softmax())
    found = solve(product, v, damping=0.05, tolerance=1e-8, iterations=500)
    wanted = torch.linalg.solve(matrix + found.damping * torch.eye(len(matrix)), flat(v))
    torch.testing.assert_close(flat(found.q), wanted, rtol=1e-5, atol=1e-8)
    assert found.damping == pytest.approx(0.05 * found.largest_eigenvalue)
    assert found.residual < 1e-8
    strong = solve(product, v, damping=1e4, tolerance=1e-10)
    assert strong.cosine > 0.999999  # so much damping leaves the direction alone


def test_negative_curvature_is_named():
    like = {"w": torch.ones(3, dtype=torch.float64)}
    diagonal = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    with pytest.raises(ConfigError, match="gauss-newton"):
        solve(lambda v: {"w": diagonal * v["w"]}, like, damping=0.1)
    with pytest.raises(ConfigError, match="damping"):
        solve(lambda v: v, like, damping=0)
    problem = small_problem()
    sampled = transition_loss("sampled-bce", DATA, problem.examples.users, seed=0)
    with pytest.raises(ConfigError, match="deterministic"):
        gauss_newton_product(problem, sampled, np.arange(3))


def test_parameters_that_serve_training_only_have_no_curvature():
    small = {"embedding_size": 4, "layers": 1, "heads": 1, "epochs": 1}
    network = create("dcrec", **small).fit(DATA).network_
    some = rows().take(np.arange(6))
    problem = Problem(network.double(), some)
    v = risk_gradient(problem, Softmax())
    for make in (hessian_product, gauss_newton_product):
        image = make(problem, Softmax(), np.arange(6))(v)
        assert any(bool(value.any()) for value in image.values())
        assert not any(bool(value.any()) for name, value in image.items() if "judge" in name)


def minimise(network, kept, ridge):
    """Fit the convex surrogate exactly: Newton's method on cross-entropy plus ridge."""
    problem = Problem(network, kept, parameters="head")
    (batch,) = problem.batches(10_000)
    loss = Softmax()

    def objective(vector):
        states, table = problem.at({"head": vector.view_as(network.head)}, batch)
        mean = loss.values(states, table, batch.asked).sum() / objective.n
        return mean + ridge / 2 * vector.square().sum()

    objective.n = N
    vector = network.head.detach().reshape(-1).clone()
    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(objective, vector)
        vector = vector - torch.linalg.solve(torch.autograd.functional.hessian(objective, vector), gradient)
        if gradient.norm() < 1e-10:
            break
    return vector.view_as(network.head)


KEPT = rows().take(np.arange(0, 40))
N = len(KEPT)


@pytest.mark.slow
def test_influence_equals_exact_retraining_without_each_sample():
    ridge = 0.05
    network = Linear(DATA.n_items)
    network.head.data.copy_(minimise(network, KEPT, ridge))
    held_out = rows().take(np.arange(40, 80))
    risk = Problem(network, held_out, parameters="head")
    v = risk_gradient(risk, Softmax())
    problem = Problem(network, KEPT, parameters="head")
    product = hessian_product(problem, Softmax(), np.arange(N))
    # The ridge is the damping: the regularised objective has Hessian H + ridge I.
    q = solve(product, v, damping=ridge, absolute=True, tolerance=1e-8, iterations=500).q
    scores = slopes(problem, Softmax(), q) / N

    def held_out_loss(head):
        other = Linear(DATA.n_items)
        other.head.data.copy_(head)
        problem = Problem(other, held_out, parameters="head")
        (batch,) = problem.batches(10_000)
        with torch.no_grad():
            return float(Softmax().values(*problem.at(problem.chosen, batch), batch.asked).mean())

    base = held_out_loss(network.head.detach())
    changes = []
    for row in range(N):
        without = KEPT.take(np.delete(np.arange(N), row))
        changes.append(held_out_loss(minimise(network, without, ridge)) - base)
    changes = np.array(changes)
    assert np.corrcoef(scores, changes)[0, 1] >= 0.95
    clear = np.abs(changes) > np.quantile(np.abs(changes), 0.25)
    assert (np.sign(scores[clear]) == np.sign(changes[clear])).mean() > 0.95
    assert np.polyfit(scores, changes, 1)[0] == pytest.approx(1, abs=0.3)
