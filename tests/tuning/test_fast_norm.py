import pytest

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
transformers = pytest.importorskip("transformers", reason="needs frugalrec[llm]")

from transformers.models.gemma.modeling_gemma import GemmaRMSNorm  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRMSNorm  # noqa: E402
from transformers.models.t5.modeling_t5 import T5LayerNorm  # noqa: E402

from frugalrec.tuning import fast_norm as module  # noqa: E402
from frugalrec.tuning.fast_norm import fast_norms  # noqa: E402


def frozen(kind, dtype=torch.float32, **options):
    norm = kind(16, **options).requires_grad_(False)
    torch.manual_seed(0)
    norm.weight.uniform_(0.5, 1.5)
    return norm.to(dtype)


def values_and_gradient(norm, dtype, shape=(2, 3, 16)):
    rng = torch.Generator().manual_seed(1)
    x, grad = (torch.randn(*shape, generator=rng).to(dtype) for _ in range(2))
    y = norm(x.requires_grad_())
    return y.detach(), *torch.autograd.grad(y, x, grad)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, T5LayerNorm, torch.nn.RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_the_norms_own(kind, dtype):
    norm = frozen(kind, dtype, eps=1e-3)
    theirs = values_and_gradient(norm, dtype)
    with fast_norms(norm) as found:
        assert found == 1
        ours = values_and_gradient(norm, dtype)
    near = module.TOLERANCES[dtype]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=near, atol=near)
    assert "forward" not in norm.__dict__


def test_against_finite_differences():
    weight = torch.linspace(0.5, 1.5, 6, dtype=torch.float64)
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: module._Norm.apply(x, weight, 1e-3), (x.requires_grad_(),))


@pytest.mark.parametrize(
    "norm",
    [
        frozen(GemmaRMSNorm),  # multiplies by 1 + weight
        frozen(torch.nn.LayerNorm, bias=False),  # takes the mean off
        LlamaRMSNorm(16),  # is trained
        torch.nn.Linear(16, 16),
    ],
    ids=["gemma", "layer-norm", "trained", "linear"],
)
def test_others_are_left_alone(norm):
    with fast_norms(norm) as found:
        assert found == 0
        assert "forward" not in norm.__dict__


def test_a_norm_that_is_trained_after_all_gets_its_gradient():
    norm = frozen(LlamaRMSNorm)
    with fast_norms(norm):
        norm.weight.requires_grad_(True)
        norm(torch.ones(2, 16)).sum().backward()
    assert norm.weight.grad is not None


def test_norms_of_a_network_are_found():
    config = transformers.Qwen3Config(
        vocab_size=9,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=4,
    )
    config.num_key_value_heads = 1
    network = transformers.Qwen3ForCausalLM(config).requires_grad_(False)
    with fast_norms(network) as found:
        assert found == 2 * 4 + 1  # two a layer, queries, keys; one at the end
