import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from frugalrec import recommenders
from frugalrec.errors import ConfigError, DataError, StorageError
from frugalrec.recommenders import RECOMMENDERS, create
from frugalrec.recommenders.base import Recommender, history_matrix, last_items, top_k
from frugalrec.recommenders.baselines import Popularity
from frugalrec.testing.contracts import RecommenderContract
from frugalrec.testing.toys import cycle_dataset
from frugalrec.types import PAD


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_every_entry_of_the_table_can_be_made(name) -> None:
    if any(module in RECOMMENDERS[name] for module in (".sequential:", ".bert4rec:", ".dcrec:")):
        pytest.importorskip("torch", reason="needs frugalrec[llm]")
    model = create(name)
    assert isinstance(model, Recommender)
    assert model.name == name


def test_options_reach_the_constructor() -> None:
    assert create("item-knn", k=7).k == 7


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'itemknn'.*ease.*item-knn"):
        create("itemknn")


def test_an_unknown_option_lists_the_accepted_ones() -> None:
    with pytest.raises(ConfigError, match=r"'neighbours'.*k, shrink"):
        create("item-knn", neighbours=5)
    with pytest.raises(ConfigError, match="takes no options"):
        create("popularity", k=5)


def test_other_packages_can_offer_models(monkeypatch) -> None:
    points = [
        EntryPoint("mine", "frugalrec.recommenders.baselines:Popularity", "frugalrec.recommenders"),
        EntryPoint("broken", "frugalrec.recommenders.base:top_k", "frugalrec.recommenders"),
    ]
    monkeypatch.setattr(recommenders, "entry_points", lambda group: points)
    assert isinstance(create("mine"), Popularity)
    assert "mine" in recommenders.names()
    with pytest.raises(ConfigError, match="not a Recommender class"):
        create("broken")


@pytest.mark.slow
def test_importing_the_table_loads_no_heavy_library() -> None:
    code = (
        "import sys, frugalrec.recommenders as r; r.create('popularity'); "
        "print([m for m in ('torch', 'transformers', 'implicit') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_top_k_agrees_with_sorting() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores = rng.integers(0, 4, size=(3, 11)).astype(np.float32)
        allowed = rng.random((3, 11)) < 0.7
        items, values = top_k(scores, 5, allowed)
        for row in range(3):
            best = sorted(np.flatnonzero(allowed[row]), key=lambda i: (-scores[row, i], i))[:5]
            padding = 5 - len(best)
            assert items[row].tolist() == [int(i) for i in best] + [PAD] * padding
            assert values[row].tolist() == scores[row, best].tolist() + [-np.inf] * padding


def test_history_matrix_is_the_rows_of_the_whole_matrix() -> None:
    data = cycle_dataset(noise=0.5).where(np.arange(720) % 7 > 0)
    empty = data.where(data.rows != 3)
    users = np.array([5, 3, 5, 59])
    np.testing.assert_array_equal(history_matrix(empty, users).toarray(), empty.matrix().toarray()[users])
    assert history_matrix(empty, np.array([], dtype=np.int32)).shape == (0, data.n_items)


def test_making_a_matrix_leaves_the_data_set_alone() -> None:
    data = cycle_dataset(noise=0.5)  # repeats inside a user, which the matrix adds up
    items, indptr = data.items.copy(), data.indptr.copy()
    first = data.matrix()
    history_matrix(data, np.arange(data.n_users))
    np.testing.assert_array_equal(data.items, items)
    np.testing.assert_array_equal(data.indptr, indptr)
    np.testing.assert_array_equal(data.matrix().toarray(), first.toarray())


def test_last_items_are_the_latest_ones() -> None:
    data = cycle_dataset()
    data = data.where(data.rows != 3)
    assert last_items(data, np.array([8, 3, 0])).tolist() == [data.history(8)[-1], PAD, data.history(0)[-1]]


def test_a_fit_that_fails_leaves_no_model_behind() -> None:
    data = cycle_dataset()
    model = create("ease", reg=1.0)
    model.fit(data)
    model.max_items = 3
    with pytest.raises(DataError):
        model.fit(data)
    assert model.fitted_on is None


def test_validation_data_must_share_the_vocabularies() -> None:
    with pytest.raises(DataError, match="valid use another"):
        Popularity().fit(cycle_dataset(), cycle_dataset(seed=1))


def test_a_missing_or_damaged_model_file_says_so(tmp_path) -> None:
    data = cycle_dataset()
    with pytest.raises(StorageError, match="cannot be read"):
        Popularity().load(tmp_path, data)
    (tmp_path / "model.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(StorageError, match="cannot be read"):
        Popularity().load(tmp_path, data)


class Positional(Popularity):
    """Scores that depend on the place in the batch."""

    def _score(self, users, histories):
        return super()._score(users, histories) + np.arange(users.size, dtype=np.float32)[:, None]


class Accumulating(Popularity):
    """A second fit that does not start afresh."""

    def _fit(self, train, valid):
        self.counts_ = getattr(self, "counts_", 0) + train.item_counts


class Forgetful(Popularity):
    """A model file that lacks what scoring needs."""

    def _restore(self, state):
        self.counts_ = np.zeros_like(state["counts"])


class Adjusting(Popularity):
    """A constructor that computes instead of storing."""

    def __init__(self, *, share: float = 0.5) -> None:
        self.share = share * 2


class Holding(Popularity):
    """A model that hands out its own buffer."""

    def _score(self, users, histories):
        self.buffer = getattr(self, "buffer", np.zeros((64, histories.n_items), dtype=np.float32))
        self.buffer[: users.size] = users[:, None]
        return self.buffer[: users.size]


class Undefined(Popularity):
    """Scores that are not numbers."""

    def _score(self, users, histories):
        return np.log(super()._score(users, histories) - self.counts_.max() - 1)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(
    ("model", "check"),
    [
        (Positional, "test_scores_do_not_depend_on_the_batch"),
        (Positional, "test_scores_follow_the_order_of_users"),
        (Positional, "test_lists_do_not_depend_on_the_batch_size"),
        (Accumulating, "test_fitting_twice_gives_the_same_model"),
        (Adjusting, "test_the_constructor_only_stores"),
        (Holding, "test_scoring_changes_neither_the_data_nor_the_model"),
        (Undefined, "test_scores_have_shape_type_and_are_finite"),
        (Popularity, "test_a_user_without_training_data_is_served_from_the_history"),  # uses_history
    ],
)
def test_the_contract_notices_a_broken_model(model, check) -> None:
    contract = RecommenderContract()
    contract.make = model
    with pytest.raises(AssertionError):
        getattr(contract, check)()


def test_the_contract_notices_a_model_that_forgets(tmp_path) -> None:
    contract = RecommenderContract()
    contract.make = Forgetful
    with pytest.raises(AssertionError):
        contract.test_saving_and_loading_changes_nothing(tmp_path)
