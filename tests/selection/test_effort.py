import sqlite3
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

pytest.importorskip("torch", reason="needs frugalrec[llm]")

import torch

from frugalrec.data.examples import examples
from frugalrec.errors import ConfigError, ModelError, StorageError
from frugalrec.llm.fresh_lora import with_lora
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt, fitted
from frugalrec.selection.effort import Effort
from frugalrec.selection.gradient_norms import GradientNorms
from frugalrec.testing.selection_contract import ScorerContract
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5
from frugalrec.testing.toys import cycle_dataset

DATA = cycle_dataset(n_users=14, n_items=20, length=8)
ROWS = examples(DATA, window=5, min_history=2)
PROMPT = NextTitlePrompt(noun="film", window=5)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return LocalLM.load(
        tiny_llama(tmp_path_factory.mktemp("effort") / "llama"), dtype="float32", device="cpu"
    )


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return LocalLM.load(tiny_t5(tmp_path_factory.mktemp("effort") / "t5"), dtype="float32", device="cpu")


@pytest.mark.parametrize("name", ["effort"])
class TestEffortContract(ScorerContract):
    @pytest.fixture(autouse=True)
    def _model(self, lm):
        self.lm = lm

    def build(self, name):
        return Effort(model=self.lm, prompt=PROMPT, rank=2)


def by_hand(lm, chosen, *, seed=0, rank=4, alpha=6):
    """One text, one forward and one backward pass a row, by plain autograd."""
    expected = []
    with with_lora(lm, rank, alpha, "all-linear", seed) as network:
        parameters = [p.requires_grad_() for name, p in network.named_parameters() if chosen(name)]
        for row in range(len(ROWS)):
            titles = [DATA.titles[item] for item in ROWS.history(row)]
            question = "Recommend the next film. Films watched, oldest first: " + "; ".join(titles)
            question += "\nNext film:"
            answer = f" {DATA.titles[ROWS.targets[row]]}"
            end = [lm.tokenizer.eos_token_id]
            if lm.is_encoder_decoder:
                ids = lm.tokenizer(question).input_ids
                labels = lm.tokenizer(answer, add_special_tokens=False).input_ids + end
            else:
                before = lm.encode([question])[0]
                ids = lm.encode([question + answer])[0] + end
                labels = [-100] * len(before) + ids[len(before) :]
            loss = network(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            expected.append(float(sum(g.square().sum() for g in gradients if g is not None)) ** 0.5)
    return expected


def test_scores_equal_a_loop_over_rows(lm):
    scores = Effort(model=lm, prompt=PROMPT, rank=4, alpha=6).score(ROWS, DATA)
    expected = by_hand(lm, lambda name: "lora_" in name)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert np.ptp(scores) > 0.05 * scores.mean()


@pytest.mark.slow
def test_scores_of_an_encoder_decoder_equal_a_loop_over_rows(t5):
    scores = Effort(model=t5, prompt=PROMPT, rank=4, alpha=6).score(ROWS, DATA)
    np.testing.assert_allclose(scores, by_hand(t5, lambda name: "lora_" in name), rtol=1e-4)


def test_the_parameters_of_the_published_code(lm):
    scores = Effort(model=lm, prompt=PROMPT, rank=4, alpha=6, parameters="reference").score(ROWS, DATA)
    expected = by_hand(lm, lambda name: "layers.1.self_attn.v_proj.lora_B" in name)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_a_row_keeps_its_score_whatever_else_is_scored(lm):
    whole = Effort(model=lm, prompt=PROMPT).score(ROWS, DATA)
    order = np.array([5, 2, 11, 0])
    part = Effort(model=lm, prompt=PROMPT, max_batch_tokens=1).score(ROWS.take(order), DATA)
    np.testing.assert_allclose(part, whole[order], rtol=1e-5)


def test_the_seed_decides_the_matrices_and_the_network_is_given_back(lm):
    names = [name for name, _ in lm.network.named_parameters()]
    flags = [parameter.requires_grad for parameter in lm.network.parameters()]
    state = torch.random.get_rng_state()
    one, same, other = (Effort(model=lm, prompt=PROMPT, seed=s).score(ROWS, DATA) for s in (1, 1, 2))
    assert np.array_equal(one, same) and not np.allclose(one, other, rtol=1e-3)
    assert [name for name, _ in lm.network.named_parameters()] == names
    assert [parameter.requires_grad for parameter in lm.network.parameters()] == flags
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_model_with_an_adapter_is_scored_there(tmp_path):
    import peft

    from frugalrec.llm.loading import quiet_peft

    base = LocalLM.load(tiny_llama(tmp_path / "llama"), dtype="float32", device="cpu")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    with quiet_peft():
        peft.get_peft_model(base.network, config).save_pretrained(tmp_path / "adapter")
    tuned = LocalLM.load(tmp_path / "llama", adapter=tmp_path / "adapter", dtype="float32", device="cpu")
    scores = Effort(model=tuned, prompt=PROMPT).score(ROWS, DATA)
    fresh = LocalLM.load(tmp_path / "llama", dtype="float32", device="cpu")
    assert not np.allclose(scores, Effort(model=fresh, prompt=PROMPT).score(ROWS, DATA), rtol=0.01)
    expected = by_hand(tuned, lambda name: "lora_" in name)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_only_the_pool_is_scored(lm):
    whole = Effort(model=lm, prompt=PROMPT).score(ROWS, DATA)
    scorer = Effort(model=lm, prompt=PROMPT, pool=4)
    scores = scorer.score(ROWS, DATA)
    scored = ~np.isnan(scores)
    assert scored.sum() == 4 == scorer.costs_["effort"].llm_calls
    np.testing.assert_allclose(scores[scored], whole[scored], rtol=1e-5)
    everything = Effort(model=lm, prompt=PROMPT, pool=1000).score(ROWS, DATA)
    assert np.array_equal(everything, whole)


def test_usage_and_progress(lm):
    steps = []
    scorer = Effort(model=lm, prompt=PROMPT, max_batch_tokens=200, progress=lambda *step: steps.append(step))
    scorer.score(ROWS, DATA)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps) and len(steps) > 2
    assert steps[-1] == (len(ROWS), len(ROWS))
    expected = sum(len(query(lm, row).tokens) for row in range(len(ROWS)))
    usage = scorer.costs_["effort"]
    assert (usage.tokens_in, usage.tokens_cached) == (expected, 0)
    assert usage.wall_s > 0 and usage.cpu_s > 0


@pytest.mark.slow
def test_the_opening_of_all_prompts_is_computed_once_where_that_is_exact(lm):
    prompt = replace(PROMPT, instruction="The user liked the book and disliked the game. Recommend a film.")
    opening = len(lm.encode([prompt.opening])[0])
    scorer = Effort(model=lm, prompt=prompt, rank=4, alpha=6, parameters="reference")
    scores = scorer.score(ROWS, DATA)
    usage = scorer.costs_["effort"]
    assert opening * len(ROWS) <= usage.tokens_cached < usage.tokens_in * 2
    whole = Effort(model=lm, prompt=prompt, rank=4, alpha=6, parameters="layers.[01].*v_proj.lora_B")
    whole.score(ROWS, DATA)
    assert whole.costs_["effort"].tokens_cached == 0
    assert whole.costs_["effort"].tokens_in == usage.tokens_in + usage.tokens_cached
    alone = [Effort(model=lm, prompt=prompt, rank=4, alpha=6, parameters="reference") for _ in range(3)]
    found = [one.score(ROWS.take(np.array([row])), DATA)[0] for row, one in enumerate(alone)]
    np.testing.assert_allclose(scores[:3], found, rtol=1e-5)


def query(lm, row, max_tokens=512):
    titles = [DATA.titles[item] for item in ROWS.history(row)]
    return fitted(lm, PROMPT, titles, DATA.titles[ROWS.targets[row]], max_tokens)


def test_options_as_a_configuration_file_gives_them(lm, tmp_path):
    expected = Effort(model=lm, prompt=PROMPT).score(ROWS, DATA)
    fields = {"noun": "film", "window": 5}
    scorer = Effort(llm=lm, prompt=fields, cache=str(tmp_path / "cache"))
    assert np.array_equal(scorer.score(ROWS, DATA), expected)
    assert np.array_equal(Effort(model=lm, llm="not/used", prompt=fields).score(ROWS, DATA), expected)
    # the run's noun counts where the prompt does not say
    assert np.array_equal(Effort(model=lm, noun="film", prompt={"window": 5}).score(ROWS, DATA), expected)
    assert np.array_equal(Effort(model=lm, noun="game", prompt=fields).score(ROWS, DATA), expected)
    other = Effort(model=lm, noun="game", prompt={"window": 5}).score(ROWS, DATA)
    assert not np.allclose(other, expected, rtol=1e-3)


class Killed(Exception):
    pass


def tokens(scorer):
    usage = scorer.costs_["effort"]
    return usage.tokens_in, usage.tokens_cached, usage.llm_calls


@pytest.mark.slow
def test_a_killed_call_resumes_with_the_same_scores_and_repeats_no_batch(lm, tmp_path, monkeypatch):
    computed = []
    compute = GradientNorms.__call__

    def counting(self, samples):
        computed.append(tuple(samples[0].tokens))
        return compute(self, samples)

    monkeypatch.setattr(GradientNorms, "__call__", counting)
    options = {"model": lm, "prompt": PROMPT, "max_batch_tokens": 200}
    unbroken = Effort(**options)
    whole = unbroken.score(ROWS, DATA)
    plan, computed[:] = list(computed), []

    def kill(done, total):
        if len(computed) == 2:
            raise Killed

    with pytest.raises(Killed):
        Effort(**options, cache=tmp_path / "cache", progress=kill).score(ROWS, DATA)
    assert computed == plan[:2]
    resumed = Effort(**options, cache=tmp_path / "cache")
    assert np.array_equal(resumed.score(ROWS, DATA), whole)
    assert computed == plan and len(plan) > 3
    # what the killed call spent counts too
    assert tokens(resumed) == tokens(unbroken) and tokens(resumed)[0] > 0
    again = Effort(**options, cache=tmp_path / "cache")
    assert np.array_equal(again.score(ROWS, DATA), whole)
    assert computed == plan
    # other options, other texts: other batches
    for changed in ({"seed": 1}, {"reduction": "sum"}, {"parameters": "lora_B"}, {"alpha": 8}):
        count = len(computed)
        Effort(**{**options, **changed}, cache=tmp_path / "cache").score(ROWS, DATA)
        assert len(computed) == count + len(plan)


def test_the_cache_holds_one_number_a_row(lm, tmp_path):
    Effort(model=lm, prompt=PROMPT, cache=tmp_path).score(ROWS, DATA)
    (path,) = tmp_path.glob("effort-*.sqlite")
    with sqlite3.connect(path) as connection:
        blobs = [row[0] for row in connection.execute("SELECT result FROM batches")]
    connection.close()
    assert sum(map(len, blobs)) == 4 * len(ROWS)


def test_a_damaged_cache_names_the_remedy(lm, tmp_path):
    scorer = Effort(model=lm, prompt=PROMPT, cache=tmp_path)
    scorer.score(ROWS, DATA)
    (path,) = tmp_path.glob("effort-*.sqlite")
    path.write_bytes(b"no database at all, but long enough to look like one" * 99)
    with pytest.raises(StorageError, match="delete the file"):
        scorer.score(ROWS, DATA)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_overflow_leave_the_row_undefined(tmp_path, number):
    broken = LocalLM.load(tiny_llama(tmp_path / "llama"), dtype="float32", device="cpu")
    token = broken.tokenizer(DATA.titles[ROWS.targets[0]], add_special_tokens=False).input_ids[-1]
    with torch.no_grad():
        broken.network.get_input_embeddings().weight[token] = number
    shows = [token in query(broken, row).tokens for row in range(len(ROWS))]
    assert 0 < sum(shows) < len(ROWS)
    scores = Effort(model=broken, prompt=PROMPT).score(ROWS, DATA)
    assert np.isnan(scores).tolist() == shows


def test_the_oldest_titles_fall_away_first_and_never_the_answer(lm):
    titles = ["The Matrix (1999)", "Heat (1995)", "Alien (1979)"]
    whole = fitted(lm, PROMPT, titles, "Blade Runner (1982)", 512)
    answer = whole.targets[:, 0].tolist()
    assert lm.tokenizer.decode(answer[:-1]) == " Blade Runner (1982)"
    assert answer[-1] == lm.tokenizer.eos_token_id
    assert [*whole.tokens, answer[-1]][-len(answer) :] == answer
    seen = set()
    for limit in range(len(whole.tokens) + 1, 0, -1):
        cut = fitted(lm, PROMPT, titles, "Blade Runner (1982)", limit)
        if cut is None:
            break
        text = lm.tokenizer.decode(cut.tokens)
        shown = text.partition("oldest first: ")[2].partition("\n")[0].split("; ")
        assert len(cut.tokens) + 1 <= limit and cut.targets[:, 0].tolist() == answer
        assert shown == titles[-len(shown) :] or (len(shown) == 1 and titles[-1].startswith(shown[0]))
        seen.add(tuple(shown))
    assert {("Heat (1995)", "Alien (1979)"), ("Alien (1979)",)} <= seen
    assert any(len(shown) == 1 and 0 < len(shown[0]) < len(titles[-1]) for shown in seen)
    assert cut is None and limit > len(answer)


@pytest.mark.slow
def test_rows_that_do_not_fit_are_undefined(lm):
    lengths = np.array([len(query(lm, row, 512).targets) for row in range(len(ROWS))])
    assert np.ptp(lengths) > 0  # "Film 7" and "Film 17"
    limits = [next(n for n in range(512) if query(lm, row, n) is not None) for row in range(len(ROWS))]
    limit = max(limits) - 1
    scores = Effort(model=lm, prompt=PROMPT, max_tokens=limit).score(ROWS, DATA)
    assert np.isnan(scores).tolist() == [needs > limit for needs in limits]
    with pytest.raises(ConfigError, match="even with an empty history; raise max_tokens"):
        Effort(model=lm, prompt=PROMPT, max_tokens=5).score(ROWS, DATA)


def test_an_empty_history_and_an_untitled_item(lm):
    empty = fitted(lm, PROMPT, [], "", 512)
    assert lm.tokenizer.decode(empty.targets[:-1, 0]) == " untitled"


def test_ids_of_untitled_items_are_not_read(lm):
    titles = [None if code % 4 == 3 else title for code, title in enumerate(DATA.titles)]
    holes = replace(DATA, item_text=DATA.item_text.with_columns(pl.Series("title", titles)))
    scores = Effort(model=lm, prompt=PROMPT).score(ROWS, holes)
    assert np.isnan(scores).tolist() == [titles[target] is None for target in ROWS.targets]
    assert 0 < np.isnan(scores).sum() < len(ROWS)
    # The same rows whose histories never held those items.
    kept = np.array([titles[item] is not None for item in ROWS.items])
    lengths = np.add.reduceat(kept.astype(np.int64), ROWS.indptr[:-1])
    without = replace(
        ROWS,
        items=ROWS.items[kept],
        indptr=np.concatenate([[0], lengths.cumsum()]),
        values=None if ROWS.values is None else ROWS.values[kept],
    )
    expected = Effort(model=lm, prompt=PROMPT).score(without, DATA)
    named = np.isfinite(scores)
    np.testing.assert_allclose(scores[named], expected[named], rtol=1e-4)
    nothing = replace(DATA, item_text=DATA.item_text.with_columns(pl.lit(None, pl.String).alias("title")))
    with pytest.raises(ConfigError, match="give items titles"):
        Effort(model=lm, prompt=PROMPT).score(ROWS, nothing)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ConfigError, "rank must be at least 1, not 0"),
        ({"pool": 0}, ConfigError, "pool must be at least 1"),
        ({"max_batch_tokens": 0}, ConfigError, "max_batch_tokens"),
        ({"prompt": {"nouns": "film"}}, ConfigError, "no such field.*nouns"),
        ({"reduction": "max"}, ConfigError, "choose mean or sum"),
        ({"parameters": "adapter"}, ConfigError, "matches none"),
        ({"targets": ["no_such_layer"]}, ModelError, "no layer for LoRA targets.*Give targets"),
        ({"model": "no-such-model"}, ModelError, "no-such-model"),
    ],
)
def test_bad_options(lm, options, error, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=message):
        Effort(**{"model": lm, "prompt": PROMPT, **options}).score(ROWS, DATA)
    assert not any("lora_" in name for name, _ in lm.network.named_parameters())


@pytest.mark.parametrize("options", [{"window": 0}, {"max_title_chars": 3}, {"noun": "two\nlines"}])
def test_bad_prompts(options):
    with pytest.raises(ConfigError, match=r"window >= 1|noun"):
        NextTitlePrompt(**options)
