import numpy as np
import pytest
import torch

from frugalrec.selection import catalogue_losses
from frugalrec.selection.catalogue_losses import Asked
from frugalrec.selection.surrogate_losses import transition_loss
from frugalrec.testing.toys import cycle_dataset

DATA = cycle_dataset(n_users=40, n_items=23, length=6)
WIDTH = 4


def case(scale):
    """States, table, derivatives of both, and what was asked, of 30 transitions."""
    draw = torch.Generator().manual_seed(0)
    states, d_states = torch.randn(2, 30, WIDTH, generator=draw, dtype=torch.float64)
    table, d_table = torch.randn(2, DATA.n_items, WIDTH, generator=draw, dtype=torch.float64)
    users = np.arange(30, dtype=np.int32)
    targets = torch.from_numpy(np.array([DATA.history(user)[-1] for user in users]).astype(np.int64))
    return states * scale, table * scale, d_states, d_table, Asked(users=users, targets=targets, rows=users)


@pytest.fixture(params=[(128, 256, 512), (7, 8, 5), (1, 1, 23)], ids=str)
def pieces(request, monkeypatch):
    """Blocks and tiles of several sizes, whole ones and ragged ones."""
    for name, value in zip(("WHOLE", "BLOCK", "TILE"), request.param, strict=True):
        monkeypatch.setattr(catalogue_losses, name, value)


@pytest.mark.parametrize("scale", [1.0, 20.0], ids=["bounded", "overflowing"])
@pytest.mark.parametrize("name", ["softmax", "expected-bce", "sampled-bce"])
def test_gradients_and_slopes_are_those_of_the_values(name, scale, pieces):
    states, table, d_states, d_table, asked = case(scale)
    loss = transition_loss(name, DATA, asked.users, seed=0)

    def values(states, table):
        return loss.values(states, table, asked)

    wanted = torch.autograd.functional.jvp(values, (states, table), (d_states, d_table))[1]
    found = loss.slopes(table, d_table)(states, d_states, asked)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    still = torch.autograd.functional.jvp(lambda states: values(states, table), states, d_states)[1]
    torch.testing.assert_close(loss.slopes(table, None)(states, d_states, asked), still, rtol=1e-9, atol=1e-9)
    gradients = torch.autograd.functional.vjp(values, (states, table), torch.ones(30, dtype=torch.float64))[1]
    for one, two in zip(loss.gradients(states, table, asked), gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_logits_beyond_the_exponential_of_float32():
    states, table, d_states, d_table, asked = case(20.0)
    loss = transition_loss("softmax", DATA, asked.users, seed=0)
    wanted = loss.slopes(table, d_table)(states, d_states, asked)
    assert float((states @ table.T).max()) > 200
    found = loss.slopes(table.float(), d_table.float())(states.float(), d_states.float(), asked)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-3)
