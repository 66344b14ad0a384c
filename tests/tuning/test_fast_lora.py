import itertools
import math
from contextlib import nullcontext

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
transformers = pytest.importorskip("transformers", reason="needs frugalrec[llm]")
peft = pytest.importorskip("peft", reason="needs frugalrec[llm]")

from frugalrec.llm.loading import quiet_peft  # noqa: E402
from frugalrec.llm.local import LocalLM  # noqa: E402
from frugalrec.testing.tiny_models import tiny_llama  # noqa: E402
from frugalrec.tuning import fast_lora as module  # noqa: E402
from frugalrec.tuning import training  # noqa: E402
from frugalrec.tuning.base import TrainingRow  # noqa: E402
from frugalrec.tuning.fast_lora import dropped, fast_lora  # noqa: E402
from frugalrec.tuning.pointwise import PointwiseConfig, PointwiseTuner  # noqa: E402

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}


def network(kind="llama"):
    torch.manual_seed(0)
    match kind:
        case "llama":
            return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
        case "qwen2":  # biases in attention
            return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES))
        case "qwen3":  # norms of queries and keys
            return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SIZES, head_dim=8))
        case "gemma":  # norms that multiply by 1 + weight
            return transformers.GemmaForCausalLM(transformers.GemmaConfig(**SIZES, head_dim=8))
        case "gpt2":  # transposed weights, norms with biases
            config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0)
            config.embd_pdrop = config.attn_pdrop = 0.0
            return transformers.GPT2LMHeadModel(config)
    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    config.decoder_start_token_id = 0
    return transformers.T5ForConditionalGeneration(config)


def tuned(kind="llama", *, dtype=torch.float32, **options):
    """Return a network with LoRA matrices that have learned something."""
    base = network(kind).to(dtype)
    task = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options}
    with quiet_peft():
        model = peft.get_peft_model(base, peft.LoraConfig(task_type=task, **options))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:  # which start at zero
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


IDS = torch.from_numpy(np.random.default_rng(0).integers(1, 60, size=(3, 9)))


def loss_and_gradients(model, ids=IDS):
    model.zero_grad()
    output = model(input_ids=ids, labels=ids, use_cache=False)
    output.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.loss.detach(), found


def assert_near(ours, theirs, near):
    torch.testing.assert_close(ours[0], theirs[0], rtol=near, atol=0)
    assert ours[1].keys() == theirs[1].keys()
    assert ours[1]
    for name, gradient in ours[1].items():
        assert gradient.dtype == theirs[1][name].dtype
        assert (gradient - theirs[1][name]).norm() <= near * theirs[1][name].norm(), name
        assert gradient.any(), name


@pytest.fixture
def calls(monkeypatch):
    """Count the layers that are computed the fast way."""
    seen = []
    real = module._LoraProduct.apply
    monkeypatch.setattr(
        module._LoraProduct, "apply", lambda *args: (seen.append(args[0].shape), real(*args))[1]
    )
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "t5"])
def test_loss_and_gradients_are_those_of_peft(kind, calls):
    model = tuned(kind)
    theirs = loss_and_gradients(model)
    assert not calls
    with fast_lora(model) as replaced:
        ours = loss_and_gradients(model)
    assert len(calls) == replaced.lora == sum("lora_A" in name for name in ours[1])
    assert_near(ours, theirs, 1e-5)


@pytest.mark.parametrize("autocast_adapter", [True, False])
def test_bfloat16_with_adapters_in_either_type(autocast_adapter, calls):
    exact = loss_and_gradients(tuned())
    base = network().to(torch.bfloat16)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    with quiet_peft():
        model = peft.get_peft_model(base, config, autocast_adapter_dtype=autocast_adapter)
    assert len({p.dtype for p in model.parameters()}) == 1 + autocast_adapter
    with torch.no_grad():
        for (_, ours), (_, theirs) in zip(model.named_parameters(), tuned().named_parameters(), strict=True):
            ours.copy_(theirs)
    model.train()
    theirs = loss_and_gradients(model)
    with fast_lora(model):
        ours = loss_and_gradients(model)
    assert calls
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-2, atol=0)
    wrong = {"ours": ours[1], "theirs": theirs[1]}
    error = {
        who: float(
            sum((g.float() - exact[1][n]).square().sum() for n, g in found.items())
            / sum(g.square().sum() for g in exact[1].values())
        )
        ** 0.5
        for who, found in wrong.items()
    }
    assert error["ours"] < 1.25 * error["theirs"] + 1e-3  # as near to float32 as PEFT's own is
    whole = [torch.cat([g.flatten().float() for g in found.values()]) for found in (ours[1], theirs[1])]
    assert (whole[0] - whole[1]).norm() < 3e-2 * whole[1].norm()


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_against_finite_differences(p, bias):
    rng = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    x, A, B = (draw(*shape).requires_grad_() for shape in ((2, 3, 5), (2, 5), (4, 2)))
    weight, offset = draw(4, 5), draw(4) if bias else None

    def run(x, A, B):
        torch.manual_seed(7)  # the same elements are dropped each time
        return module._LoraProduct.apply(x, weight, offset, A, B, 1.7, p)

    assert torch.autograd.gradcheck(run, (x, A, B))


def test_dropout_is_that_of_the_formula():
    rng = torch.Generator().manual_seed(0)
    x, A, B, weight = (torch.randn(*shape, generator=rng) for shape in ((6, 50), (2, 50), (4, 2), (4, 50)))
    torch.manual_seed(3)
    ours = module._LoraProduct.apply(x, weight, None, A, B, 1.5, 0.2)
    torch.manual_seed(3)
    keep = torch.ones(300)
    keep[dropped(300, 0.2)] = 0
    assert 30 < 300 - keep.sum() < 90
    expected = x @ weight.T + 1.5 * (x * keep.view(6, 50) / 0.8) @ A.T @ B.T
    torch.testing.assert_close(ours, expected)


@pytest.mark.slow
def test_dropped_sets_have_the_probabilities_of_independent_draws():
    n, p, draws = 4, 0.3, 8000
    torch.manual_seed(0)
    counts = dict.fromkeys(itertools.chain(*(itertools.combinations(range(n), k) for k in range(n + 1))), 0)
    for _ in range(draws):
        counts[tuple(dropped(n, p).tolist())] += 1
    expected = {chosen: draws * p ** len(chosen) * (1 - p) ** (n - len(chosen)) for chosen in counts}
    chi2 = sum((counts[s] - expected[s]) ** 2 / expected[s] for s in counts)
    assert chi2 < 37.7  # the 0.999 quantile at 15 degrees of freedom


@pytest.mark.parametrize("p", [1e-12, 1e-3, 0.05, 0.5, 0.999])
def test_dropped_positions_are_sorted_and_as_many_as_expected(p):
    n = 200_000
    torch.manual_seed(0)
    found = dropped(n, p)
    assert found.dtype == torch.int64
    assert (found[1:] > found[:-1]).all()
    assert abs(found.numel() - n * p) <= 5 * math.sqrt(n * p * (1 - p)) + 1
    if found.numel():
        assert found[0] >= 0
        assert found[-1] < n


def test_dropout_changes_nothing_in_evaluation_and_draws_anew_in_training():
    model = tuned(lora_dropout=0.3)
    with fast_lora(model), torch.no_grad():
        first, second = (model(input_ids=IDS).logits for _ in range(2))
        assert not torch.allclose(first, second)
        torch.manual_seed(5)
        third = model(input_ids=IDS).logits
        torch.manual_seed(5)
        assert torch.equal(third, model(input_ids=IDS).logits)
        ours = model.eval()(input_ids=IDS).logits
    torch.testing.assert_close(ours, model(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)


def test_mean_over_dropout_is_the_output_without():
    layer = peft.tuners.lora.layer.Linear(
        torch.nn.Linear(30, 8).requires_grad_(False), "default", peft.LoraConfig(lora_dropout=0.5), r=4
    )
    torch.manual_seed(0)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(1, 30)
    with fast_lora(layer), torch.no_grad():
        many = layer.train()(x.expand(20_000, 30))
        whole = layer.eval()(x)
    error = (many.mean(0) - whole[0]).abs() / many.std(0) * math.sqrt(20_000)
    assert error.max() < 4


def test_training_ends_at_the_same_weights():
    ends = []
    for fast in (False, True):
        model = tuned()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=3e-3)
        before = [p.detach().clone() for p in trained]
        with fast_lora(model) if fast else torch.enable_grad():
            for _ in range(5):
                optimizer.zero_grad()
                model(input_ids=IDS, labels=IDS).loss.backward()
                optimizer.step()
        assert all((p - b).abs().max() > 1e-3 for p, b in zip(trained, before, strict=True))
        ends.append(torch.cat([p.detach().flatten() for p in trained]))
    torch.testing.assert_close(ends[1], ends[0], atol=2e-4, rtol=0)
    assert (ends[1] - ends[0]).norm() < 1e-4 * ends[0].norm()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant, calls):
    model = tuned(lora_dropout=0.2)
    with fast_lora(model):
        torch.manual_seed(2)
        whole = loss_and_gradients(model)
        once = len(calls)
        with quiet_peft():
            model.enable_input_require_grads()
            model.get_base_model().activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(2)
        again = loss_and_gradients(model)
    assert len(calls) > 2 * once  # the layers ran a second time, and dropped the same elements
    assert_near(again, whole, 1e-5)


def test_layers_below_the_lowest_tuned_one_get_no_gradient():
    model = tuned(layers_to_transform=[1, 2], target_modules=["q_proj", "v_proj", "o_proj"])
    entering = []
    layer = model.get_base_model().model.layers
    hooks = [
        part.register_forward_pre_hook(lambda _, args: entering.append(args[0].requires_grad))
        for part in (layer[1].self_attn.q_proj, layer[1].self_attn.o_proj, layer[2].self_attn.q_proj)
    ]
    theirs = loss_and_gradients(model)
    with fast_lora(model):
        ours = loss_and_gradients(model)
    for hook in hooks:
        hook.remove()
    assert entering == [False, True, True] * 2
    assert_near(ours, theirs, 1e-5)


def test_everything_is_given_back():
    model = tuned()
    first = next(m for m in model.modules() if isinstance(m, peft.tuners.lora.Linear))

    def wrapped(x):
        return type(first).forward(first, x) * 1.0

    first.forward = wrapped  # somebody else's change stays
    names = list(model.state_dict())
    before = {id(m): dict(m.__dict__) for m in model.modules()}
    with pytest.raises(ZeroDivisionError), fast_lora(model), fast_lora(model):
        assert list(model.state_dict()) == names
        assert first.forward is not wrapped
        raise ZeroDivisionError
    assert first.forward is wrapped
    assert all(m.__dict__.keys() == before[id(m)].keys() for m in model.modules())
    assert sum("forward" in m.__dict__ for m in model.modules()) == 1


def falls_back(model, calls, ids=IDS):
    """Return the gradients after a check that no layer was computed the fast way."""
    theirs = loss_and_gradients(model, ids)
    with fast_lora(model):
        ours = loss_and_gradients(model, ids)
    assert not calls
    assert_near(ours, theirs, 1e-5)
    return ours[1]


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}], ids=["dora", "bias"])
def test_variants_run_their_own_code(options, calls):
    falls_back(tuned("qwen2", target_modules=["q_proj", "v_proj"], **options), calls)


def test_embeddings_and_transposed_layers_run_their_own_code(calls):
    falls_back(tuned("llama", target_modules=["embed_tokens"]), calls)
    falls_back(tuned("gpt2", target_modules=["c_attn"], fan_in_fan_out=True), calls)


def test_two_active_adapters_run_their_own_code(calls):
    model = tuned()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    model.base_model.set_adapter(["default", "other"])
    found = falls_back(model, calls)
    assert sum("other" in name for name in found) * 2 == len(found)
    model.base_model.set_adapter("other")  # one of two is plain LoRA again
    with fast_lora(model):
        loss_and_gradients(model)
    assert calls


def test_disabled_and_merged_adapters_run_their_own_code(calls):
    model = tuned().eval()
    with torch.no_grad(), fast_lora(model):
        whole = model(input_ids=IDS).logits
        calls.clear()
        with model.disable_adapter():
            without = model(input_ids=IDS).logits
        model.merge_adapter()
        merged = model(input_ids=IDS).logits
        model.unmerge_adapter()
    assert not calls
    assert not torch.allclose(whole, without)
    torch.testing.assert_close(merged, whole, atol=1e-4, rtol=1e-4)


def test_tuned_base_weights_run_their_own_code_and_get_gradients(calls):
    model = tuned()
    weight = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    weight.requires_grad_(True)
    theirs = loss_and_gradients(model)
    with fast_lora(model) as replaced:
        ours = loss_and_gradients(model)
    assert len(calls) == replaced.lora - 1
    assert weight.grad is not None
    assert_near(ours, theirs, 1e-5)


def test_hooks_inside_a_layer_are_called(calls):
    model = tuned(target_modules=["o_proj"])
    seen = []
    for layer in model.get_base_model().model.layers:
        layer.self_attn.o_proj.lora_A["default"].register_forward_hook(lambda *_: seen.append(1))
    falls_back(model, calls)
    assert len(seen) == 6


def test_autocast_runs_its_own_code(calls):
    model = tuned()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        falls_back(model, calls)


def test_saved_adapter_is_that_of_peft(tmp_path):
    model = tuned()
    model.save_pretrained(tmp_path / "outside")
    with fast_lora(model):
        model.save_pretrained(tmp_path / "inside")
    outside, inside = (tmp_path / side / "adapter_model.safetensors" for side in ("outside", "inside"))
    assert outside.read_bytes() == inside.read_bytes()


@pytest.mark.slow
def test_tuning_computes_the_fast_way_and_learns_the_same(tmp_path, calls, monkeypatch):
    base = LocalLM.load(tiny_llama(tmp_path / "tiny"), dtype="float32", device="cpu")
    rows = [TrainingRow(prompt=f"film {n} :", label=n % 3 == 0, group=n) for n in range(8)]
    tuner = PointwiseTuner(PointwiseConfig(epochs=2, learning_rate=1e-2, batch_size=2, dropout=0.0))
    fast = tuner.tune(base, rows, None, tmp_path / "fast")
    assert calls
    calls.clear()
    monkeypatch.setattr(training, "fast_lora", nullcontext)
    plain = tuner.tune(base, rows, None, tmp_path / "plain")
    assert not calls
    curves = [np.array(adapter.evidence["loss_curve"])[:, 1] for adapter in (fast, plain)]
    np.testing.assert_allclose(*curves, rtol=1e-4)
