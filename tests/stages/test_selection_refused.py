"""What cannot be selected is refused in a sentence, early where it can be, and leaves no files."""

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs frugalrec[llm]")

from frugalrec import config as configuration
from frugalrec.errors import ConfigError, DataError, FrugalrecError
from frugalrec.pipeline import run_pipeline
from frugalrec.runs import Run
from frugalrec.selection.base import Scorer
from frugalrec.stages import data
from frugalrec.stages import selection as stage
from frugalrec.testing.tiny_models import tiny_llama

SMALL = {"options": {"embedding_size": 8, "epochs": 1}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_llama(tmp_path_factory.mktemp("models") / "tiny"))


def configured(tiny, **fields):
    changed = {name.replace("__", "."): value for name, value in fields.items()}
    names = {"recommenders.names": ["popularity"], "data.members": 40}
    return configuration.load(None, {**names, "llm.model": tiny, **changed})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scorer", "budget", "options", "named"),
    [
        ("random", 5000, {}, "budget of 5000 rows exceeds the .* rows to choose from; lower it"),
        ("dealrec", "5000", {}, "budget of 5000 rows exceeds"),
        ("dealrec", 9, {"pool": 8}, "9 rows exceeds the 8 rows that dealrec scores"),
        ("random", "many", {}, "'many' is not a number"),
        ("best", 5, {}, "unknown scorer 'best'"),
        ("ccs", 5, {"groups": 900, **SMALL}, "groups=900"),
        ("dealrec", 5, {"choice": {"groups": 900}, "influence": SMALL}, "groups=900"),
        ("recranker", 5, {"clusters": 900, **SMALL}, "clusters=900"),
        ("tf-dcon", 5, {"clusters": 900}, "clusters=900"),
        ("effort", 5, {"targets": ["no_such_layer"]}, "no layer for LoRA targets.*Give targets"),
        ("dealrec", 5, {"effort": {"targets": ["no_such"]}, "influence": SMALL}, "no layer for LoRA targets"),
    ],
)
def test_a_run_with_a_selection_that_cannot_be_leaves_no_selection(
    tiny, tmp_path, scorer, budget, options, named
):
    config = configured(tiny, selection__scorer=scorer, selection__budget=budget, selection__options=options)
    with pytest.raises(FrugalrecError, match=named):
        run_pipeline(config, tmp_path)
    assert not (tmp_path / "selection").exists()
    left = [path for path in (tmp_path / ".work").rglob("*") if path.suffix in (".npz", ".parquet")]
    assert not left and not (tmp_path / "report.json").exists()
    if named.startswith(("budget", "'many'", "unknown")):  # before the first model is fitted
        assert not (tmp_path / "recommenders").exists()
    if not named.startswith("no layer"):
        assert not list((tmp_path / ".work").iterdir())


def test_rows_without_a_history_are_named_before_any_model_is_fitted(tiny, tmp_path):
    with pytest.raises(DataError, match=r"no user has 5000 training.*lower selection\.min_history"):
        run_pipeline(configured(tiny, selection__min_history=5000), tmp_path)
    assert not (tmp_path / "recommenders").exists()


class Odd(Scorer):
    """Returns what it is given."""

    name = "odd"

    def __init__(self, *, values):
        self.values = values

    def _score(self, examples, dataset):
        return np.resize(np.array(self.values, dtype=np.float32), len(examples))


@pytest.mark.slow
def test_odd_scores_are_chosen_from_or_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(stage.scorers.SCORERS, "odd", f"{__name__}:Odd")

    def select(folder, values):
        config = configured(
            tiny, selection__scorer="odd", selection__budget=6, selection__options={"values": values}
        )
        with Run(tmp_path / folder) as run:
            return stage.select_samples(run, config, data.prepare(run, config)).selection

    assert select("constant", [2.0]).kept.size == 6
    some = select("some", [float("nan"), 1.0])
    assert some.kept.size == 6 and not np.isnan(some.scores[some.kept]).any()
    with pytest.raises(DataError, match="odd: none of the .* rows has a score"):
        select("none", [float("nan")])
    assert not (tmp_path / "none" / "selection").exists()
    assert not list((tmp_path / "none" / ".work").iterdir())


@pytest.mark.slow
def test_the_automatic_budget_is_64_or_all(tiny, tmp_path):
    assert configured(tiny).selection.budget == "auto"
    for members, expected in ((40, None), (150, 64)):
        config = configured(tiny, data__members=members)
        with Run(tmp_path / str(members)) as run:
            rows, size = stage.candidate_rows(config, data.prepare(run, config))
        assert size == (expected or len(rows)) <= len(rows)
    assert len(rows) > 64


@pytest.mark.slow
@pytest.mark.parametrize("scorer", ["grand", "tf-dcon", "recranker"])
def test_the_named_scorers_choose_in_a_run_and_say_what_they_cost(tiny, tmp_path, scorer):
    options = {} if scorer == "tf-dcon" else SMALL
    config = configured(tiny, selection__scorer=scorer, selection__budget="20%", selection__options=options)
    with Run(tmp_path) as run:
        samples = stage.select_samples(run, config, data.prepare(run, config))
    assert samples.selection.scorer == scorer
    assert samples.selection.kept.size == round(0.2 * len(samples.candidates))
    costs = stage.load_json(samples.stage.path / "costs.json")
    assert costs[scorer]["wall_s"] > 0 and ("surrogate" in costs) == bool(options)


def test_a_budget_is_refused_where_the_selection_alone_is_asked_for(tiny, tmp_path):
    config = configured(tiny, selection__budget="101%")
    with Run(tmp_path) as run, pytest.raises(ConfigError, match="'101%' is out of range"):
        stage.select_samples(run, config, data.prepare(run, config))
