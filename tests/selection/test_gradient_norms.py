from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs frugalrec[llm]")

import peft
import torch
import transformers

from frugalrec.errors import ConfigError, ModelError
from frugalrec.llm.loading import quiet_peft
from frugalrec.llm.scoring import Query
from frugalrec.selection.gradient_norms import GradientNorms, gradient_norms
from frugalrec.selection.lora_sites import squared_norms

SIZES = ((9, 3), (17, 5), (5, 1), (26, 8), (12, 12), (6, 2))
"""Tokens and answer tokens of the samples."""


def llama(**options):
    settings = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        **options,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, resid_pdrop=0.4
    )
    config.bos_token_id = config.eos_token_id = 1
    return transformers.GPT2LMHeadModel(config)


def t5():
    config = transformers.T5Config(
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.4,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def opt():  # its feed-forward layers see all samples' tokens in one heap
    config = transformers.OPTConfig(
        vocab_size=96,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        init_std=0.3,
    )
    return transformers.OPTForCausalLM(config)


BUILD = {"llama": llama, "gpt2": gpt2, "t5": t5}
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "t5": ["q", "k", "v", "wo"],
}


def with_lora(network, targets, *, trained=True, seed=1, **options):
    """Add LoRA layers; `trained` ones have B != 0."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.5, target_modules=targets, **options)
    config.fan_in_fan_out = isinstance(network, transformers.GPT2LMHeadModel)
    with quiet_peft():
        model = peft.get_peft_model(network, config)
    if trained:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
    return model.get_base_model().train()


def network(kind, **options):
    torch.manual_seed(0)
    return with_lora(BUILD[kind](), TARGETS[kind], **options)


def samples(*, seq2seq=False, seed=0):
    rng = np.random.default_rng(seed)
    found = []
    for length, n in SIZES:
        tokens = rng.integers(2, 96, size=length + 1).tolist()
        targets = np.array(tokens[-n:], dtype=np.int64)[:, None]
        if seq2seq:
            decoder = (0, *tokens[-n:-1])
            query = Query(
                tokens=tuple(tokens[:-n]), positions=tuple(range(n)), targets=targets, decoder=decoder
            )
        else:
            query = Query(
                tokens=tuple(tokens[:-1]), positions=tuple(range(length - n, length)), targets=targets
            )
        found.append(query)
    return found


def loop(model, queries, chosen, reduction="mean"):
    """One forward and backward pass a sample, by plain autograd, full logits."""
    model.eval()
    parameters = [p for name, p in model.named_parameters() if chosen(name)]
    for parameter in parameters:
        parameter.requires_grad_(True)
    norms = []
    for query in queries:
        inputs = {"input_ids": torch.tensor([query.tokens])}
        if query.decoder:
            inputs["decoder_input_ids"] = torch.tensor([query.decoder])
        log_p = model(**inputs).logits[0].log_softmax(-1)
        losses = -log_p[list(query.positions), query.targets[:, 0].tolist()]
        gradients = torch.autograd.grad(getattr(losses, reduction)(), parameters, allow_unused=True)
        norms.append(float(torch.cat([g.flatten() for g in gradients if g is not None]).norm()))
    return np.array(norms)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_norms_of_all_lora_matrices_equal_a_loop_over_samples(kind, reduction):
    model, queries = network(kind), samples(seq2seq=kind == "t5")
    norms = gradient_norms(model, queries, reduction=reduction, max_batch_tokens=64)
    expected = loop(model, queries, lambda name: "lora_" in name, reduction)
    np.testing.assert_allclose(norms, expected, rtol=1e-4)
    assert norms.dtype == np.float32 and np.ptp(expected) > 0.1 * expected.mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("llama", r"layers\.2\.self_attn\.v_proj\.lora_B"),  # the reference's subset
        ("llama", r"layers\.1\.mlp\.down_proj\.lora_A"),
        ("llama", "lora_A"),
        ("gpt2", r"h\.1\.attn\.c_attn\.lora_B"),
        ("t5", r"encoder.*\.v\.lora_A"),
        ("t5", r"decoder\.block\.1\.layer\.1\.EncDecAttention.*lora_"),
    ],
)
def test_norms_of_some_matrices_equal_a_loop(kind, parameters):
    import re

    model, queries = network(kind), samples(seq2seq=kind == "t5")
    norms = gradient_norms(model, queries, parameters=parameters)
    with GradientNorms(model, parameters=parameters) as compute:
        assert compute.closed_form
    np.testing.assert_allclose(norms, loop(model, queries, re.compile(parameters).search), rtol=1e-4)


@pytest.mark.parametrize("kind", BUILD)
def test_norms_before_tuning_where_b_is_zero(kind):
    model, queries = network(kind, trained=False), samples(seq2seq=kind == "t5")
    norms = gradient_norms(model, queries)
    np.testing.assert_allclose(norms, loop(model, queries, lambda name: "lora_" in name), rtol=1e-4)
    # A's gradient is zero there, exactly.
    assert not gradient_norms(model, queries, parameters="lora_A").any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUILD)
def test_batch_size_order_and_padding_change_nothing(kind):
    model, queries = network(kind), samples(seq2seq=kind == "t5")
    alone = gradient_norms(model, queries, max_batch_tokens=1)
    together = gradient_norms(model, queries, max_batch_tokens=10_000)
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    order = np.array([3, 0, 5, 1, 4, 2])
    moved = gradient_norms(model, [queries[i] for i in order], max_batch_tokens=40)
    np.testing.assert_allclose(moved, alone[order], rtol=1e-5)
    # what fills the short rows plays no part
    padded = gradient_norms(model, queries, max_batch_tokens=10_000, pad=7)
    np.testing.assert_allclose(padded, together, rtol=1e-5)


def test_no_dropout_and_the_network_is_left_as_it_was():
    model, queries = network("gpt2"), samples()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    first, second = gradient_norms(model, queries), gradient_norms(model, queries)
    assert np.array_equal(first, second)
    assert model.training and all(module.training for module in model.modules())
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert any(flags.values()) and not all(flags.values())
    assert all(torch.equal(weights[name], p) and p.grad is None for name, p in model.named_parameters())


def test_layers_that_add_nothing_work_again_afterwards():
    model, queries = network("llama", trained=False), samples()
    before = gradient_norms(model, queries)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    after = gradient_norms(model, queries)
    np.testing.assert_allclose(after, loop(model, queries, lambda name: "lora_" in name), rtol=1e-4)
    assert not np.allclose(before, after, rtol=0.01)


def test_nothing_is_recorded_below_the_lowest_chosen_layer():
    model, queries = network("llama"), samples()
    seen = {}

    def note(name, module, inputs, output):
        seen[name] = (inputs[0].requires_grad, output.requires_grad)

    handles = [
        module.register_forward_hook(lambda m, i, o, n=name: note(n, m, i, o))
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "v_proj", "down_proj"))
    ]
    gradient_norms(model, queries, parameters=r"layers\.1\.self_attn\.v_proj\.lora_")
    for handle in handles:
        handle.remove()
    recorded = {name for name, (_, output) in seen.items() if output}
    assert {name.split(".")[2] for name in recorded} == {"1", "2"}
    assert "model.layers.1.self_attn.q_proj" not in recorded
    assert not seen["model.layers.1.self_attn.v_proj"][0]


def test_a_scale_of_another_kind():
    torch.manual_seed(0)
    model = with_lora(llama(), ["v_proj"], use_rslora=True)
    queries = samples()
    np.testing.assert_allclose(
        gradient_norms(model, queries), loop(model, queries, lambda name: "lora_" in name), rtol=1e-4
    )


def test_a_layer_that_is_used_twice_adds_up_before_the_norm_is_taken():
    torch.manual_seed(0)
    base = llama(num_hidden_layers=2)
    base.model.layers[1].self_attn.v_proj = base.model.layers[0].self_attn.v_proj
    model = with_lora(base, r".*layers\.0\.self_attn\.v_proj")
    model.model.layers[1].self_attn.v_proj = model.model.layers[0].self_attn.v_proj
    queries = samples()
    np.testing.assert_allclose(
        gradient_norms(model, queries), loop(model, queries, lambda name: "lora_" in name), rtol=1e-4
    )


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_parameters_without_a_closed_form_get_a_pass_a_sample(options):
    torch.manual_seed(0)
    model, queries = with_lora(llama(attention_bias=True), ["v_proj"], **options), samples()
    with GradientNorms(model) as norms:
        assert not norms.closed_form
    expected = loop(model, queries, lambda name: "lora_" in name)
    np.testing.assert_allclose(gradient_norms(model, queries), expected, rtol=1e-4)


def test_base_weights_can_be_chosen_too(caplog):
    model, queries = network("llama"), samples()
    expected = loop(model, queries, lambda name: name == "model.norm.weight")
    np.testing.assert_allclose(
        gradient_norms(model, queries, parameters=r"^model\.norm"), expected, rtol=1e-4
    )
    assert (
        "matches 1 parameters that are no matrices of plain LoRA layers, such as model.norm.weight"
        in caplog.text
    )
    caplog.clear()
    gradient_norms(model, queries, parameters="lora_")
    assert not caplog.text


def test_the_last_feed_forward_layer_reads_answer_positions_only():
    model, queries = network("llama"), samples()
    seen = []
    model.model.layers[-1].mlp.gate_proj.register_forward_hook(lambda _, i, __: seen.append(i[0].shape[:2]))
    gradient_norms(model, queries, parameters=r"layers\.2\.self_attn\.v_proj\.lora_")
    assert seen[-1] == (sum(answers for _, answers in SIZES), 1)


def test_tokens_in_one_heap_are_an_error_that_names_the_remedy():
    torch.manual_seed(0)
    model, queries = with_lora(opt(), ["fc1", "v_proj"]), samples()
    with pytest.raises(ModelError, match=r"fc1 sees .* one heap.*max_batch_tokens=1"):
        gradient_norms(model, queries)
    norms = gradient_norms(model, queries, max_batch_tokens=1)
    np.testing.assert_allclose(norms, loop(model, queries, lambda name: "lora_" in name), rtol=1e-4)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [("lora_C", "matches none.*try lora_"), ("(", "not a regular expression")],
)
def test_senseless_parameters(parameters, message):
    with pytest.raises(ConfigError, match=message):
        gradient_norms(network("llama"), samples(), parameters=parameters)


def test_other_bad_input():
    with pytest.raises(ConfigError, match="no LoRA layers"):
        gradient_norms(llama(), samples())
    with pytest.raises(ConfigError, match="'median'; choose mean or sum"):
        gradient_norms(network("llama"), samples(), reduction="median")
    model = network("llama")
    next(m for m in model.modules() if hasattr(m, "merge")).merge()
    with pytest.raises(ModelError, match="merged"):
        gradient_norms(model, samples())


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_both_forms_of_the_squared_norm(b, t, m, n, seed):
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(b, t, m)), rng.normal(size=(b, t, n))
    expected = [sum(np.outer(left[i, s], right[i, s]) for s in range(t)) for i in range(b)]
    found = squared_norms(torch.from_numpy(left), torch.from_numpy(right))
    np.testing.assert_allclose(found, [(g**2).sum() for g in expected], rtol=1e-8, atol=1e-10)


def opening(queries, length=34):
    """Let all samples begin with the same tokens."""
    start = tuple(range(20, 20 + length))
    return [
        replace(
            query,
            tokens=start + query.tokens,
            positions=tuple(length + position for position in query.positions),
        )
        for query in queries
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "parameters", "shares"),
    [
        ("llama", r"layers\.2\.self_attn\.v_proj\.lora_B", True),
        ("llama", r"layers\.[12]\..*(q_proj|down_proj)\.lora_", True),
        ("gpt2", r"h\.1\..*lora_", True),
        ("llama", r"layers\.[02]\.self_attn\.v_proj\.lora", False),
        ("gpt2", r"lora_", False),
    ],
)
def test_sharing_what_all_samples_begin_with_changes_no_norm(kind, parameters, shares):
    import re

    model, queries = network(kind), opening(samples())
    expected = loop(model, queries, re.compile(parameters).search)
    with GradientNorms(model, parameters=parameters) as norms:
        shared = norms.share(queries)
        found = norms(queries)
    assert shared == (34 if shares else 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    whole = gradient_norms(model, queries, parameters=parameters, max_batch_tokens=50)
    np.testing.assert_allclose(whole, expected, rtol=1e-4)
    assert "forward" not in vars(
        model.get_submodule("model.layers.0" if kind == "llama" else "transformer.h.0")
    )


def test_the_lower_layers_read_a_shared_prefix_once():
    model, queries = network("llama"), opening(samples())
    widths = {0: [], 2: []}
    for number, seen in widths.items():
        layer = model.model.layers[number].self_attn.q_proj
        layer.register_forward_hook(lambda m, inputs, o, seen=seen: seen.append(inputs[0].shape[1]))
    with GradientNorms(model, parameters=r"layers\.2\..*lora_") as norms:
        assert norms.share(queries) == 34
        for seen in widths.values():
            seen.clear()
        norms(queries[:3])
        norms(queries[3:])
    longest = [max(len(query.tokens) for query in part) for part in (queries[:3], queries[3:])]
    assert widths == {0: [34, longest[0] - 34, longest[1] - 34], 2: longest}


def test_short_prefixes_and_single_samples_are_not_shared():
    model, queries = network("llama"), opening(samples(), length=30)
    with GradientNorms(model, parameters=r"layers\.2\..*lora_") as norms:
        assert norms.share(queries) == 0
        assert norms.share(opening(samples())[:1]) == 0


def test_texts_beyond_a_sliding_window_are_not_shared():
    model, queries = network("llama"), opening(samples())
    model.config.sliding_window = 54
    with GradientNorms(model, parameters=r"layers\.2\..*lora_") as norms:
        assert norms.share(queries) == 0
        assert norms.share([query for query in queries if len(query.tokens) <= 54]) == 34


def test_a_network_that_shares_wrongly_is_found_out(monkeypatch):
    from frugalrec.selection import shared_prefix

    forward = shared_prefix.SharedPrefix.forward
    monkeypatch.setattr(
        shared_prefix.SharedPrefix, "forward", lambda self, inputs: 1.1 * forward(self, inputs)
    )
    model, queries = network("llama"), opening(samples())
    with GradientNorms(model, parameters=r"layers\.2\..*lora_") as norms:
        assert norms.share(queries) == 0
        assert norms(queries).shape == (len(queries),)
