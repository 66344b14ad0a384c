"""What surrogates of influence rely on: one state per history, whatever the batch, in both modes."""

import numpy as np
import pytest
import torch

from frugalrec.recommenders import losses
from frugalrec.recommenders.batching import last_states
from frugalrec.recommenders.bert4rec import BERT4RecNetwork
from frugalrec.recommenders.dcrec import DCRecNetwork
from frugalrec.recommenders.networks import CaserNetwork, GRU4RecNetwork, SASRecNetwork
from frugalrec.testing.toys import cycle_dataset

KINDS = ["sasrec", "gru4rec", "caser", "bert4rec", "dcrec"]
CAUSAL = ["sasrec", "gru4rec", "caser", "dcrec"]


@pytest.fixture(autouse=True)
def one_thread():
    """Spare small tensors the cost of waking threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(kind: str):
    """Return a network over the ring's 20 items, in evaluation mode, with weights large enough to matter."""
    torch.manual_seed(0)
    attention = {"embedding_size": 8, "layers": 2, "heads": 2, "dropout": 0.3, "max_length": 12}
    if kind == "gru4rec":
        built = GRU4RecNetwork(20, embedding_size=8, layers=2, dropout=0.3)
    elif kind == "caser":
        built = CaserNetwork(20, embedding_size=8, window=4, horizontal=3, vertical=2, dropout=0.3)
    elif kind == "dcrec":
        built = DCRecNetwork(20, **attention, neighbours=4)
        built.connect(cycle_dataset(noise=0.5), 2)
    else:
        built = {"sasrec": SASRecNetwork, "bert4rec": BERT4RecNetwork}[kind](20, **attention)
    built.initialise(scale=0.5)
    return built.eval()


def histories():
    """Return item codes (6, 12), padded with random codes, and lengths."""
    items = torch.randint(20, (6, 12), generator=torch.Generator().manual_seed(2))
    return items, torch.tensor([3, 12, 1, 7, 2, 11])


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_depends_on_its_row_alone(kind) -> None:
    model, (items, lengths) = network(kind), histories()
    found = model.next_states(items, lengths)
    assert found.shape == (6, 8)
    other_padding = torch.where(torch.arange(12) < lengths[:, None], items, (items + 5) % 20)
    torch.testing.assert_close(model.next_states(other_padding, lengths), found, rtol=1e-5, atol=1e-5)
    for row, length in enumerate(lengths.tolist()):
        alone = model.next_states(items[[row], :length], lengths[[row]])[0]
        torch.testing.assert_close(found[row], alone, rtol=1e-5, atol=1e-5)
    changed = items.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 20
    close = torch.isclose(model.next_states(changed, lengths), found, atol=1e-4).all(dim=1)
    far = lengths > 4  # further back than Caser's window
    assert not close[~far].any()
    assert kind == "caser" or not close.any()


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_causal_state_is_the_one_at_the_last_item(kind) -> None:
    model, (items, lengths) = network(kind), histories()
    wanted = model(items)[torch.arange(6), lengths - 1]
    torch.testing.assert_close(model.next_states(items, lengths), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_last_states_are_next_states_of_each_user(kind) -> None:
    model, (items, lengths) = network(kind), histories()
    rows = [items[row, :length].numpy() for row, length in enumerate(lengths.tolist())]
    rows.insert(2, np.array([], dtype=np.int64))
    indptr = np.concatenate([[0], np.cumsum([row.size for row in rows])])
    found = last_states(model, indptr, np.concatenate(rows))
    assert not found.requires_grad
    assert torch.equal(found[2], torch.zeros(8))
    known = found[[0, 1, 3, 4, 5, 6]]
    torch.testing.assert_close(known, model.next_states(items, lengths).detach(), rtol=1e-5, atol=1e-5)


class NextItemLoss(torch.nn.Module):
    """The loss of each example, as a module, so that its parameters can be replaced."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, items, lengths, targets):
        return losses.softmax_loss(self.model.next_states(items, lengths), self.model.items.weight, targets)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # inside torch.func
@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_gives_every_example_its_slope(kind) -> None:
    examples, (items, lengths) = NextItemLoss(network(kind).double()), histories()
    targets = torch.tensor([5, 9, 3, 7, 0, 19])
    values = {name: value.detach() for name, value in examples.named_parameters()}
    torch.manual_seed(3)
    direction = {name: torch.randn_like(value) for name, value in values.items()}

    def loss(parameters):
        return torch.func.functional_call(examples, parameters, (items, lengths, targets))

    value, slopes = torch.func.jvp(loss, (values,), (direction,))
    # Naive oracle: one example at a time, without its padding, by ordinary backpropagation.
    names = list(values)
    for row, length in enumerate(lengths.tolist()):
        one = examples(items[[row], :length], lengths[[row]], targets[[row]])[0]
        parameters = [examples.get_parameter(name) for name in names]
        gradients = torch.autograd.grad(one, parameters, materialize_grads=True)
        expected = sum((g * direction[name]).sum() for name, g in zip(names, gradients, strict=True))
        torch.testing.assert_close(value[row], one.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(slopes[row], expected, rtol=1e-5, atol=1e-5)
