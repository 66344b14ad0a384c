import re

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp

from frugalrec.recommenders.bert4rec import BERT4RecNetwork
from frugalrec.recommenders.dcrec import DCRecNetwork
from frugalrec.recommenders.networks import CaserNetwork, GRU4RecNetwork, SASRecNetwork
from frugalrec.selection.duals import NoRule, both, dual
from frugalrec.testing.toys import cycle_dataset

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch.func


class States(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, items, lengths):
        return self.network.next_states(items, lengths)


def built(kind):
    torch.manual_seed(0)
    shape = {"embedding_size": 8, "layers": 2, "heads": 2, "dropout": 0.3, "max_length": 9}
    if kind == "dcrec":
        network = DCRecNetwork(20, **shape, neighbours=4)
        network.connect(cycle_dataset(noise=0.5), 2)
    else:
        network = {"sasrec": SASRecNetwork, "bert4rec": BERT4RecNetwork}[kind](20, **shape)
    network.initialise(scale=0.5)
    return States(network.double().eval())


def rows():
    items = torch.randint(20, (5, 9), generator=torch.Generator().manual_seed(1))
    return items, torch.tensor([1, 9, 4, 2, 7])


def derivatives(module, names):
    """States and derivatives along one direction, by `torch.func.jvp` and by dual tensors."""
    values = {name: value.detach() for name, value in module.named_parameters() if re.search(names, name)}
    draw = torch.Generator().manual_seed(2)
    moves = {n: torch.randn(v.shape, generator=draw, dtype=v.dtype) for n, v in values.items()}
    wanted = jvp(lambda chosen: functional_call(module, chosen, rows()), (values,), (moves,))
    with torch.no_grad():
        found = functional_call(module, {n: dual(v, moves[n]) for n, v in values.items()}, rows())
    return both(found), wanted


PARTS = [".", "items", "positions|mask", "norm", r"norm\.bias", "mix", r"blocks\.1", r"bias", "weight"]


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec", "dcrec"])
@pytest.mark.parametrize("names", PARTS)
def test_derivatives_equal_those_of_torch(kind, names):
    found, wanted = derivatives(built(kind), names)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "network",
    [
        GRU4RecNetwork(20, embedding_size=8, layers=1, dropout=0.0),
        CaserNetwork(20, embedding_size=8, window=3, horizontal=2, vertical=2, dropout=0.0),
    ],
    ids=["gru4rec", "caser"],
)
def test_other_layers_have_no_rule(network):
    with pytest.raises(NoRule, match="no rule for"):
        derivatives(States(network.double().eval()), ".")


def test_single_operations():
    draw = torch.Generator().manual_seed(3)
    x, dx, y, dy = (torch.randn(2, 3, generator=draw, dtype=torch.float64) for _ in range(4))
    few, moved = x[0], dx[0]
    mask = torch.tensor([[True, False, True], [False, False, True]])
    operations = {
        "sum of shapes": lambda a, b: a + b[0],
        "product of shapes": lambda a, b: a[0] * b * 2.0,
        "matrices": lambda a, b: a @ b.T,
        "where": lambda a, b: torch.where(mask, a[0], b),
        "where constant": lambda a, b: torch.where(mask, a, few) * b,
        "parts": lambda a, b: torch.cat([a, few[None]]) + torch.stack([b[0], b[1], few]),
        "padded": lambda a, b: nn.functional.pad(a, (1, 0), value=2.0) * nn.functional.pad(b, (0, 1)),
        "filled": lambda a, b: torch.softmax((a + b).masked_fill(mask, -torch.inf), dim=0)[:, 1:2],
        "linear": lambda a, b: nn.functional.linear(few, a) + nn.functional.linear(b, few[None], b[0, :1]),
    }
    for name, operation in operations.items():
        value, tangent = jvp(operation, (x, y), (dx, dy))
        found = both(operation(dual(x, dx), dual(y, dy)))
        torch.testing.assert_close(found[0], value, msg=name)
        torch.testing.assert_close(found[1], tangent, msg=name)
    assert both(few)[1] is None
    torch.testing.assert_close(both(dual(x, dx)[0])[1], moved)


def test_what_would_change_a_dual_tensor_in_place_is_refused():
    one = dual(torch.zeros(3), torch.ones(3))
    with pytest.raises(NoRule):
        one[0] = 1
    with pytest.raises(NoRule):
        one += 1
    for operation in (
        lambda: torch.add(one, one, alpha=2),
        lambda: torch.softmax(one, dim=0, dtype=torch.float64),
        lambda: nn.functional.layer_norm(one, (3,)),
        lambda: nn.functional.embedding(torch.tensor([0]), one[None], max_norm=1.0),
        lambda: torch.zeros(3)[one],
    ):
        with pytest.raises(NoRule):
            operation()
