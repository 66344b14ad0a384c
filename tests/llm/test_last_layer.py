import pytest
import torch
from torch import nn

from frugalrec.llm.last_layer import FeedForward

ROWS, COLUMNS = [0, 0, 1, 1], [2, 4, 0, 4]


class Layer(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp


class Mixing(nn.Module):
    def forward(self, states):
        return states.cumsum(dim=1)


def feed_forward():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 3))


def states():
    return torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()


def rows_seen(module, run):
    seen = []
    with module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[:2])):
        run()
    return seen


def test_read_positions_and_their_gradients_are_those_of_the_whole():
    module = feed_forward()
    feed = FeedForward.of([Layer(nn.ReLU()), Layer(module)], [])
    whole, one = states(), states()
    wanted = (whole + module(whole))[ROWS, COLUMNS]
    with feed.only_at([*ROWS, 0], [*COLUMNS, 2]):  # a position may be read twice
        out = one + module(one)
    found = out[ROWS, COLUMNS]
    torch.testing.assert_close(found, wanted)
    assert torch.equal(out[0, 0], one[0, 0])  # nothing is added where nobody reads
    pull = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    wanted.backward(pull)
    found.backward(pull)
    torch.testing.assert_close(one.grad, whole.grad)
    torch.testing.assert_close(module(one), module(whole))  # the module is as it was


def test_only_the_read_positions_are_computed():
    module = feed_forward()
    feed = FeedForward.of([Layer(module)], [])
    first = module[0]

    def run():
        with feed.only_at(ROWS, COLUMNS):
            module(states())

    assert rows_seen(first, run)[-1] == (4, 1)
    assert rows_seen(first, run) == [(4, 1)]  # tried once only


def test_a_module_that_mixes_positions_runs_whole():
    module = Mixing()
    feed = FeedForward.of([Layer(module)], [])
    with feed.only_at(ROWS, COLUMNS):
        torch.testing.assert_close(module(states()), states().cumsum(dim=1))


def test_a_forward_of_the_instance_comes_back():
    module = feed_forward()
    module.forward = lambda values: values * 2
    with FeedForward.of([Layer(module)], []).only_at(ROWS, COLUMNS):
        pass
    torch.testing.assert_close(module(states()), states() * 2)


@pytest.mark.parametrize("layers", [[], [nn.Linear(1, 1)]], ids=["none", "no mlp"])
def test_layers_without_one(layers):
    assert FeedForward.of(layers, []) is None


def test_chosen_modules_see_all_positions():
    module = feed_forward()
    assert FeedForward.of([Layer(module)], [module[0]]) is None
