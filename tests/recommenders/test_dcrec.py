import math

import numpy as np
import pytest
import torch

from frugalrec.data.splits import split
from frugalrec.errors import ConfigError, StorageError
from frugalrec.recommenders import graphs
from frugalrec.recommenders.base import Recommender
from frugalrec.recommenders.batching import training_windows
from frugalrec.recommenders.dcrec import DCRec, DCRecNetwork, contrast, divergence
from frugalrec.recommenders.losses import softmax_loss
from frugalrec.recommenders.training import validation_ndcg
from frugalrec.testing.contracts import RecommenderContract
from frugalrec.testing.toys import cycle_dataset

TINY = {
    "embedding_size": 8,
    "epochs": 2,
    "batch_size": 32,
    "learning_rate": 0.01,
    "neighbours": 4,
    "threads": 1,
}


@pytest.fixture(autouse=True)
def one_thread():
    """Spare small tensors the cost of waking threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestDCRec(RecommenderContract):
    exact = False

    def make(self) -> Recommender:
        return DCRec(**TINY)


def ragged():
    """Return the ring with jumps and between 2 and 12 items a user."""
    data = cycle_dataset(n_users=40, noise=0.5)
    keep = np.random.default_rng(0).integers(2, 13, size=data.n_users)
    place = np.arange(data.n) - np.repeat(data.indptr[:-1], data.lengths)
    return data.where(place < np.repeat(keep, data.lengths))


def network(data, neighbours=4) -> DCRecNetwork:
    torch.manual_seed(0)
    built = DCRecNetwork(
        data.n_items, embedding_size=8, layers=2, heads=2, dropout=0.0, max_length=12, neighbours=neighbours
    )
    built.initialise(scale=0.5)
    built.connect(data, 2)
    return built.eval()


def test_graph_views_are_normalised_convolutions() -> None:
    data = ragged()
    model = network(data, neighbours=data.n_items)
    embeddings = model.items.weight.detach().double().numpy()
    found = model.graph_views(torch.arange(data.n_items))
    for view, counts in zip(found, (graphs.transitions(data), graphs.co_interactions(data)), strict=True):
        links, strengths = graphs.convolution(counts, 2, data.n_items)
        mixed = np.stack([strengths[i] @ embeddings[links[i]] for i in range(data.n_items)])
        centred = mixed - mixed.mean(axis=1, keepdims=True)
        expected = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(view.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_the_fused_state_is_a_weighted_mean_of_the_views() -> None:
    model = network(ragged())
    views = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    fused = model.fuse(*views)
    for row in range(5):
        scores = [model.choose(torch.tanh(model.compare(view[row]))).item() for view in views]
        shares = [math.exp(score) / sum(map(math.exp, scores)) for score in scores]
        expected = sum(share * view[row] for share, view in zip(shares, views, strict=True))
        torch.testing.assert_close(fused[row], expected, rtol=1e-5, atol=1e-6)


def test_the_contrast_equals_a_loop() -> None:
    rng = torch.Generator().manual_seed(0)
    views, others = torch.randn(2, 6, 5, generator=rng)
    items = torch.tensor([3, 1, 3, 7, 1, 0])
    found = contrast(views, others, items, 0.5)
    for row in range(6):
        total = 0.0
        for column in range(6):
            if column != row and items[column] == items[row]:
                continue  # the same graph view is no negative
            cosine = float(views[row] @ others[column] / (views[row].norm() * others[column].norm()))
            total += math.exp(cosine / 0.5)
        cosine = float(views[row] @ others[row] / (views[row].norm() * others[row].norm()))
        assert found[row].item() == pytest.approx(math.log(total) - cosine / 0.5, rel=1e-5)
    assert contrast(views[:1], others[:1], items[:1], 0.5).item() == pytest.approx(0, abs=1e-6)


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    weights = torch.tensor([0.2, 0.4, 0.9], dtype=torch.float64)
    fitted = torch.distributions.Normal(weights.mean(), weights.std(correction=0))
    prior = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), 0.1)
    expected = torch.distributions.kl_divergence(fitted, prior)
    assert divergence(weights, 0.5, 0.1).item() == pytest.approx(expected.item(), rel=1e-4)
    assert math.isfinite(divergence(weights[:1], 0.5, 0.1).item())
    at_prior = torch.tensor([0.4, 0.6])
    assert divergence(at_prior, 0.5, 0.1).item() == pytest.approx(0, abs=1e-4)


def test_conformity_reads_three_channels_and_teaches_the_judge_only() -> None:
    data = ragged()
    model = network(data)
    items = torch.tensor([0, 5, 5, 9])
    sequence = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
    transitions, together = model.graph_views(items)
    found = model.conformity(items, sequence, transitions, together)
    matrices = [
        graphs.matrix(*graphs.convolution(counts, 2, 4)).toarray()
        for counts in (graphs.transitions(data), graphs.co_interactions(data))
    ]

    def cosine(a, b):
        return float(a @ b / math.sqrt((a @ a) * (b @ b)))

    for row, item in enumerate(items.tolist()):
        channels = torch.tensor(
            [
                cosine(sequence[row].detach(), together[row].detach()),
                cosine(transitions[row].detach(), together[row].detach()),
                cosine(matrices[0][item], matrices[1][item]),
            ]
        )
        expected = torch.sigmoid(model.judge(channels))[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
    found.sum().backward()
    assert sequence.grad is None
    assert model.items.weight.grad is None
    assert model.judge.weight.grad is not None


def test_a_step_equals_one_window_at_a_time() -> None:
    data = ragged()
    model = network(data)
    windows = training_windows(data, 5)
    recommender = DCRec(**TINY, contrast=0.3, prior=0.2, conformity=0.4)
    rows = np.random.default_rng(1).permutation(len(windows))[:11]
    value, count = recommender._step(model, windows, data)(rows, np.random.default_rng(0))
    main, ends, sequences = [], [], []
    for row in rows:
        window = slice(windows.indptr[row], windows.indptr[row + 1])
        codes = torch.from_numpy(windows.inputs[window])
        targets = torch.from_numpy(windows.targets[window])
        main.append(softmax_loss(model(codes[None])[0], model.items.weight, targets))
        ends.append(int(codes[-1]))
        sequences.append(model.encode(model.items(codes[None]))[0, -1])
    items, sequence = torch.tensor(ends), torch.stack(sequences)
    transitions, together = model.graph_views(items)
    weights = model.conformity(items, sequence, transitions, together)
    own = contrast(sequence, transitions, items, 0.5)
    crowd = contrast(sequence, together, items, 0.5)
    expected = torch.cat(main).mean() + 0.2 * divergence(weights, 0.4, 0.1)
    expected = expected + 0.3 * ((1 - weights) * own + weights * crowd).mean()
    assert count == windows.lengths[rows].sum()
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_prior_keeps_the_weights_apart() -> None:
    data, spreads = ragged(), []
    options = {**TINY, "epochs": 25, "batch_size": 8, "dropout": 0.0, "layers": 1, "learning_rate": 0.03}
    for prior in (1.0, 0.0):
        model = DCRec(**options, prior=prior, conformity=0.3, spread=0.1).fit(data).network_
        with torch.no_grad():
            ends, sequences = [], []
            for user in range(data.n_users):
                codes = torch.from_numpy(data.history(user)[:-1].astype(np.int64))
                ends.append(int(codes[-1]))
                sequences.append(model.encode(model.items(codes[None]))[0, -1])
            items = torch.tensor(ends)
            weights = model.conformity(items, torch.stack(sequences), *model.graph_views(items))
        spreads.append(float(weights.std()))
        if prior:
            assert float(weights.mean()) == pytest.approx(0.3, abs=0.05)
    assert spreads[0] == pytest.approx(0.1, rel=0.5)
    assert spreads[1] < spreads[0] / 2


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["softmax", "sampled-softmax", "bce"])
def test_every_loss_learns_the_ring(loss) -> None:
    data = cycle_dataset(noise=0.0, length=8)
    model = DCRec(
        embedding_size=16,
        layers=1,
        dropout=0.1,
        epochs=15,
        batch_size=16,
        learning_rate=0.01,
        neighbours=4,
        loss=loss,
        n_negatives=64,
        threads=1,
    ).fit(data)
    code = {name: index for index, name in enumerate(data.item_ids.tolist())}
    last = [data.item_ids[data.history(user)[-1]] for user in range(data.n_users)]
    expected = [code[f"i{(int(name[1:]) + 1) % data.n_items}"] for name in last]
    best = model.recommend(np.arange(data.n_users), 1).items[:, 0]
    assert np.mean(best == expected) > 0.9  # chance is 1 in 12 unseen items


def test_scores_do_not_depend_on_who_else_is_scored() -> None:
    data = ragged()
    model = DCRec(**TINY).fit(data)
    whole = model.score(np.arange(data.n_users))
    for user in range(data.n_users):
        np.testing.assert_allclose(model.score(np.array([user]))[0], whole[user], rtol=1e-5, atol=1e-5)


def test_an_item_never_seen_in_training_ranks_below_all_others() -> None:
    data = cycle_dataset()
    model = DCRec(**TINY).fit(data.where(data.items != 4))
    scores = model.score(np.arange(data.n_users), data)
    assert (scores[:, [4]] < np.delete(scores, 4, axis=1)).all()


@pytest.mark.slow
def test_a_killed_fit_continues_to_the_same_scores(tmp_path, monkeypatch) -> None:
    parts = split(cycle_dataset(), "leave-last-out")
    options = {**TINY, "epochs": 4}
    whole = DCRec(**options).fit(parts.train, parts.valid)
    calls = []

    def killed(*args, **kwargs):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        return validation_ndcg(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("frugalrec.recommenders.sequential.validation_ndcg", killed)
        with pytest.raises(KeyboardInterrupt):
            DCRec(**options, checkpoint=tmp_path).fit(parts.train, parts.valid)
    resumed = DCRec(**options, checkpoint=tmp_path).fit(parts.train, parts.valid)
    np.testing.assert_array_equal(resumed.score(np.arange(30)), whole.score(np.arange(30)))
    assert [one["loss"] for one in resumed.history_] == [one["loss"] for one in whole.history_]
    with pytest.raises(StorageError, match="other data or options"):
        DCRec(**options, contrast=0.9, checkpoint=tmp_path).fit(parts.train, parts.valid)


def test_the_seed_decides_the_model() -> None:
    data = cycle_dataset()
    first, again, other = (DCRec(**TINY, seed=seed).fit(data).score(np.arange(5)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": 0}, "neighbours must be above 0, not 0"),
        ({"graph_layers": 0}, "graph_layers must be above 0, not 0"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"contrast": -1.0}, "contrast must be at least 0, not -1.0"),
        ({"prior": -0.5}, "prior must be at least 0, not -0.5"),
        ({"conformity": 1.0}, "conformity must lie between 0 and 1, not 1.0"),
        ({"heads": 3}, "dcrec: heads must divide embedding_size; 3 does not divide 8"),
    ],
)
def test_bad_options_name_the_value(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        DCRec(**{**TINY, **options}).fit(cycle_dataset())
