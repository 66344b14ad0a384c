import dataclasses
import json

import numpy as np
import pytest
import torch

from frugalrec.errors import ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.local import LocalLM
from frugalrec.testing.llm_contract import CONTINUATIONS, PREFIX, SUFFIXES, LanguageModelContract
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5

ANSWERS = (" Yes", " No")
GROUPS = [
    PromptGroup(prefix=PREFIX, suffixes=SUFFIXES),
    PromptGroup(
        prefix="The user liked", suffixes=(" the book. Answer:", " the game. Answer:", " it. Answer:")
    ),
    PromptGroup(prefix="", suffixes=("the lazy dog. Answer:",)),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return LocalLM.load(tiny_llama(tmp_path_factory.mktemp("llama")), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return LocalLM.load(tiny_t5(tmp_path_factory.mktemp("t5")), dtype="float32", device="cpu")


def causal_logprobs(lm, tokens):
    """One prompt, one plain forward pass, log-softmax in float64: the naive oracle."""
    with torch.no_grad():
        logits = lm.network(torch.tensor([tokens])).logits[0].double()
    return torch.log_softmax(logits, dim=-1).numpy()


class TestLlamaContract(LanguageModelContract):
    tolerance = 1e-5

    @pytest.fixture(autouse=True)
    def _model(self, llama):
        self.lm = llama

    def make(self):
        return self.lm


class TestLlamaWithStartTokenContract(TestLlamaContract):
    @pytest.fixture(autouse=True)
    def _model(self, tmp_path_factory):
        folder = tiny_llama(tmp_path_factory.mktemp("start"), start=True)
        self.lm = LocalLM.load(folder, dtype="float32", device="cpu")


class TestT5Contract(LanguageModelContract):
    tolerance = 1e-4

    @pytest.fixture(autouse=True)
    def _model(self, t5):
        self.lm = t5

    def make(self):
        return self.lm


class TestSmallBatchesContract(TestLlamaContract):
    """Batches of 30 tokens and rows of 40: everything is split, nothing changes."""

    @pytest.fixture(autouse=True)
    def _model(self, llama, monkeypatch):
        monkeypatch.setattr("frugalrec.llm.scoring.MAX_ROW", 40)
        self.lm = LocalLM(
            llama.network, llama.tokenizer, model=llama.model, source=llama.source, max_batch_tokens=30
        )

    test_choose_accounts_for_every_prompt_token = (
        LanguageModelContract.test_choose_accounts_for_every_prompt_token
    )


def test_choose_equals_one_plain_forward_pass_a_prompt(llama):
    scores, _ = llama.choose(GROUPS, ANSWERS)

    for group, found in zip(GROUPS, scores, strict=True):
        for row, suffix in zip(found, group.suffixes, strict=True):
            prompt = llama.tokenizer(group.prefix + suffix).input_ids
            last = causal_logprobs(llama, prompt)[-1]
            firsts = [llama.tokenizer(answer).input_ids[0] for answer in ANSWERS]
            np.testing.assert_allclose(row, last[firsts], atol=1e-5)


def test_loglikelihood_equals_a_loop_over_tokens(llama):
    scores, _ = llama.loglikelihood([PREFIX, "The user"], [CONTINUATIONS, CONTINUATIONS[:2]])

    for prompt, found in zip([PREFIX, "The user"], scores, strict=True):
        for value, text in zip(found, CONTINUATIONS, strict=False):
            context = llama.tokenizer(prompt).input_ids
            whole = llama.tokenizer(prompt + text).input_ids
            assert whole[: len(context)] == context
            logprobs = causal_logprobs(llama, whole)
            expected = sum(logprobs[i - 1, whole[i]] for i in range(len(context), len(whole)))
            assert value == pytest.approx(expected, abs=1e-4)


def test_a_token_across_the_border_is_counted_with_the_continuation(llama):
    # "Ye" + "s" is tokenised as "Yes" after a blank: the token counts from where the two differ.
    prompt, text = "Answer: Ye", "s"
    context = llama.tokenizer(prompt).input_ids
    whole = llama.tokenizer(prompt + text).input_ids
    cut = next(i for i, (a, b) in enumerate(zip(context, whole, strict=False)) if a != b)
    assert cut < len(context)

    (found,), _ = llama.loglikelihood([prompt], [[text]])

    logprobs = causal_logprobs(llama, whole)
    expected = sum(logprobs[i - 1, whole[i]] for i in range(cut, len(whole)))
    assert found[0] == pytest.approx(expected, abs=1e-4)


def test_a_token_across_prefix_and_suffix_is_the_one_of_the_whole_text(llama):
    split = PromptGroup(prefix="Next fi", suffixes=("lm: Alien. Answer:", "ne day. Answer:"))

    (found,), _ = llama.choose([split], ANSWERS)

    for row, suffix in zip(found, split.suffixes, strict=True):
        last = causal_logprobs(llama, llama.tokenizer(split.prefix + suffix).input_ids)[-1]
        np.testing.assert_allclose(
            row, last[[llama.tokenizer(answer).input_ids[0] for answer in ANSWERS]], atol=1e-5
        )


def test_token_counts_equal_naive_counts(llama):
    group = GROUPS[0]
    rows = [llama.tokenizer(group.prefix + s).input_ids for s in group.suffixes]
    shared = next(i for i in range(len(min(rows, key=len))) if len({row[i] for row in rows}) > 1)

    _, usage = llama.choose([group], ANSWERS)
    _, whole = LocalLM(llama.network, llama.tokenizer, model="m", share_prefix=False).choose([group], ANSWERS)

    total = sum(map(len, rows))
    assert (usage.tokens_in, usage.tokens_cached) == (total - 2 * shared, 2 * shared)
    assert (whole.tokens_in, whole.tokens_cached) == (total, 0)
    assert usage.llm_calls == whole.llm_calls == 3
    assert usage.wall_s > 0


def test_generate_equals_a_greedy_loop(llama):
    prompts = [PREFIX, "the lazy dog", "Yes"]
    completions, usage = llama.generate(prompts, max_new_tokens=7)

    for prompt, completion in zip(prompts, completions, strict=True):
        tokens = llama.tokenizer(prompt).input_ids
        start = len(tokens)
        while len(tokens) < start + 7 and tokens[-1] != llama.tokenizer.eos_token_id:
            tokens.append(int(causal_logprobs(llama, tokens)[-1].argmax()))
        assert completion.text == llama.tokenizer.decode(tokens[start:], skip_special_tokens=True)
        assert completion.tokens_out == len(tokens) - start
    assert usage.tokens_in == sum(len(llama.tokenizer(p).input_ids) for p in prompts)


def test_generation_stops_at_the_end_token(llama, tmp_path):
    """Make the likeliest first token the end token: nothing but it is generated."""
    (completion,), _ = llama.generate(["the lazy dog"], max_new_tokens=5)
    first = int(causal_logprobs(llama, llama.tokenizer("the lazy dog").input_ids)[-1].argmax())
    folder = tiny_llama(tmp_path, eos_token_id=first)

    (stopped, other), usage = LocalLM.load(folder, dtype="float32", device="cpu").generate(
        ["the lazy dog", PREFIX], max_new_tokens=5
    )

    assert completion.tokens_out == 5
    assert stopped.tokens_out == 1 and stopped.text == llama.tokenizer.decode([first])
    assert usage.tokens_out == 1 + other.tokens_out


def test_t5_choose_equals_one_plain_forward_pass_a_prompt(t5):
    scores, usage = t5.choose(GROUPS, ANSWERS)

    tokens = 0
    for group, found in zip(GROUPS, scores, strict=True):
        for row, suffix in zip(found, group.suffixes, strict=True):
            ids = t5.tokenizer(group.prefix + suffix).input_ids
            tokens += len(ids) + 1
            with torch.no_grad():
                logits = t5.network(
                    input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0]])
                ).logits[0, 0]
            firsts = [t5.tokenizer(answer, add_special_tokens=False).input_ids[0] for answer in ANSWERS]
            expected = torch.log_softmax(logits.double(), dim=-1).numpy()[firsts]
            np.testing.assert_allclose(row, expected, atol=1e-4)
    assert usage.tokens_in == tokens and usage.tokens_cached == 0


def test_t5_loglikelihood_equals_the_labels_loss(t5):
    (found,), usage = t5.loglikelihood([PREFIX], [CONTINUATIONS])

    ids = t5.tokenizer(PREFIX).input_ids
    rows = [t5.tokenizer(text, add_special_tokens=False).input_ids for text in CONTINUATIONS]
    for value, row in zip(found, rows, strict=True):
        with torch.no_grad():
            loss = t5.network(input_ids=torch.tensor([ids]), labels=torch.tensor([row])).loss
        assert value == pytest.approx(-float(loss) * len(row), rel=1e-4)
    # The encoder reads the prompt, and the decoder its start token, once for all three continuations.
    assert usage.tokens_in == len(ids) + sum(map(len, rows)) - 2
    assert usage.tokens_cached == 2 * len(ids)


@pytest.mark.parametrize("option", ["sliding_window", "no_tree"])
def test_models_that_a_tree_mask_would_falsify_get_whole_prompts(llama, option, monkeypatch):
    expected, _ = llama.choose(GROUPS, ANSWERS)
    lm = LocalLM(llama.network, llama.tokenizer, model="m")
    if option == "sliding_window":
        monkeypatch.setattr(lm.network.config, "sliding_window", 8, raising=False)
    else:
        monkeypatch.setattr("frugalrec.llm.prefix.layout", ignores_the_tree)

    found, usage = lm.choose(GROUPS, ANSWERS)

    assert usage.tokens_cached == 0
    for mine, exact in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, exact, atol=1e-5)


def ignores_the_tree(rows, pad):
    """Return what a network computes that knows only plain causal attention and running positions."""
    width = max(row.length for row in rows)
    ids = np.array([[*row.prefix, *sum(row.suffixes, ())] for row in rows if row.length == width])
    return ids, np.arange(width)[None], np.tri(width, dtype=bool)[None]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_networks_with_trained_adapters_share_prefixes_too(llama, tmp_path):
    import peft

    base = LocalLM.load(llama.source, dtype="float32", device="cpu")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(base.network, config)
    tuned.save_pretrained(str(tmp_path / "adapter"))

    lm = LocalLM.load(llama.source, adapter=tmp_path / "adapter", dtype="float32", device="cpu")
    scores, usage = lm.choose(GROUPS, ANSWERS)

    last = causal_logprobs(lm, lm.tokenizer(PREFIX + SUFFIXES[0]).input_ids)[-1]
    firsts = [lm.tokenizer(answer).input_ids[0] for answer in ANSWERS]
    np.testing.assert_allclose(scores[0][0], last[firsts], atol=1e-5)
    assert usage.tokens_cached > 0
    assert np.abs(scores[0] - llama.choose(GROUPS, ANSWERS)[0][0]).max() > 0.01
    assert lm.fingerprint != llama.fingerprint


def test_scoring_leaves_no_trace_in_a_network_in_training(llama):
    lm = LocalLM.load(llama.source, dtype="float32", device="cpu")
    lm.network.train()

    lm.choose(GROUPS, ANSWERS)

    assert lm.network.training
    head = lm.network.get_output_embeddings()
    assert not head._forward_pre_hooks
    lm.network(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert all(p.grad is not None for p in lm.network.parameters())


def test_fingerprint_changes_with_weights_and_number_type(llama, tmp_path):
    other = LocalLM.load(tiny_llama(tmp_path, seed=1), dtype="float32", device="cpu")
    half = LocalLM.load(llama.source, dtype="bfloat16", device="cpu")

    again = LocalLM.load(llama.source, dtype="float32", device="cpu")
    assert again.fingerprint == llama.fingerprint
    assert len({llama.fingerprint, other.fingerprint, half.fingerprint}) == 3


def test_bfloat16_is_close_to_float32(llama):
    half = LocalLM.load(llama.source, dtype="bfloat16", device="cpu")
    assert half.dtype == "bfloat16"

    found, usage = half.choose(GROUPS, ANSWERS)

    assert usage.tokens_cached > 0
    for mine, exact in zip(found, llama.choose(GROUPS, ANSWERS)[0], strict=True):
        np.testing.assert_allclose(mine, exact, atol=0.5)


def test_prompts_longer_than_the_context_are_refused_with_numbers(llama):
    long = PromptGroup(prefix="the lazy dog " * 400, suffixes=(" Answer:",))
    with pytest.raises(ModelError, match=r"prompt 0 has 1,\d{3} tokens, but .* holds 512"):
        llama.choose([long], ANSWERS)
    with pytest.raises(ModelError, match="and 510 new ones"):
        llama.generate(["the lazy dog"], max_new_tokens=510)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((" Yes", " Yes, please"), "cannot be told apart"),
        ((" Yes", ""), "does not begin with a token of its own"),
        ((), "at least one answer"),
    ],
)
def test_answers_that_cannot_be_read_off_are_refused(llama, answers, message):
    with pytest.raises(ModelError, match=message):
        llama.choose(GROUPS, answers)


def test_an_answer_that_merges_with_the_prompt_is_refused(llama):
    group = PromptGroup(prefix="Answer: Ye", suffixes=("",))
    with pytest.raises(ModelError, match="merges with it"):
        llama.choose([group], ["s", "t"])


def test_an_empty_prompt_is_refused(llama):
    with pytest.raises(ModelError, match="prompt 1 is empty"):
        llama.generate(["Yes", ""])


def test_chat_uses_the_template(llama, monkeypatch):
    assert (
        llama.chat("Hi", system="Be brief")
        == "<|user|>system: Be brief\n<|user|>user: Hi\n<|user|>assistant:"
    )
    monkeypatch.setattr(llama.tokenizer, "chat_template", None)
    with pytest.raises(ModelError, match="no chat template"):
        llama.chat("Hi")


def test_a_start_token_is_put_once(tmp_path):
    lm = LocalLM.load(tiny_llama(tmp_path, start=True), dtype="float32", device="cpu")
    assert lm.encode(["Yes", "<s>Yes"]) == [[2, *lm.tokenizer("Yes").input_ids[1:]]] * 2


def test_what_does_not_load_says_so(llama, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "no-such-architecture"}))
    with pytest.raises(ModelError, match="does not load"):
        LocalLM.load(broken)
    with pytest.raises(ModelError, match="is not an adapter"):
        LocalLM.load(llama.source, adapter=tmp_path)
    with pytest.raises(ModelError, match="no device 'teapot'"):
        LocalLM.load(llama.source, device="teapot")
    with pytest.raises(ModelError, match="dtype must be"):
        LocalLM.load(llama.source, dtype="int3")


def test_prompt_group_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        GROUPS[0].prefix = "x"
