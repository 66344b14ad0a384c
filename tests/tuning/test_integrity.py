import json
import os
import shutil
import zipfile

import numpy as np
import pytest

from frugalrec.errors import ModelError, StorageError
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.tuning.generative import GenerativeConfig, GenerativeTuner

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
peft = pytest.importorskip("peft", reason="needs frugalrec[llm]")

from safetensors.torch import load_file, save_file  # noqa: E402

from frugalrec.llm.adapters import CONFIG, MANIFEST, WEIGHTS, network_fingerprint  # noqa: E402
from frugalrec.llm.loading import quiet_peft  # noqa: E402
from frugalrec.llm.local import LocalLM  # noqa: E402
from frugalrec.llm.models import sha256_of  # noqa: E402
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5  # noqa: E402
from frugalrec.tuning import adapt, integrity  # noqa: E402
from frugalrec.tuning.deliver import export, merge  # noqa: E402
from frugalrec.tuning.integrity import verify  # noqa: E402
from frugalrec.tuning.reload import check_reload, log_probabilities  # noqa: E402

PROMPT = NextTitlePrompt(noun="film")
ROWS = [(["Alien", "Heat"], "Blade Runner"), (["Heat"], "The Matrix"), (["Alien"], "Fox"), (["Dog"], "Heat")]


def tuned(base, out, **options):
    config = GenerativeConfig(epochs=2, learning_rate=2e-2, batch_size=2, rank=4, **options)
    return GenerativeTuner(config, prompt=PROMPT).tune(base, ROWS, None, out)


def queries(lm):
    return GenerativeTuner(prompt=PROMPT)._queries(lm, ROWS)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return LocalLM.load(tiny_llama(tmp_path_factory.mktemp("llama")), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def good(base, tmp_path_factory):
    return tuned(base, tmp_path_factory.mktemp("good") / "adapter").path


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "copy")


def load(base, adapter):
    return LocalLM.load(base.source, adapter=adapter, dtype="float32", device="cpu")


def with_weights(folder, change, *, manifest=False):
    """Change an adapter's tensors; without manifest, as if another program had written it."""
    weights = load_file(folder / WEIGHTS)
    save_file(change(weights), folder / WEIGHTS, metadata={"format": "pt"})
    if not manifest:
        (folder / MANIFEST).unlink()


def first(weights, part):
    return next(name for name in sorted(weights) if part in name)


def renamed(weights):
    name = first(weights, "lora_B")
    return {
        **{k: v for k, v in weights.items() if k != name},
        name.replace("lora_B", "lora_C"): weights[name],
    }


KINDS = [
    *((maker, "float32", "lora") for maker in (tiny_llama, tiny_qwen, tiny_t5)),
    (tiny_llama, "bfloat16", "lora"),
    (tiny_t5, "bfloat16", "dora"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("maker", "dtype", "method"), KINDS)
def test_what_is_saved_is_what_is_served(maker, dtype, method, tmp_path):
    lm = LocalLM.load(maker(tmp_path / "m"), dtype=dtype, device="cpu")
    seen = {}
    write = integrity.write

    def watched(trained, *args, **kwargs):
        seen["answers"] = log_probabilities(trained, queries(trained))
        return write(trained, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(integrity, "write", watched)
        adapter = tuned(lm, tmp_path / "a", method=method)
    assert adapter.evidence["reload_difference"] == 0
    again = log_probabilities(LocalLM.load(lm.source, adapter=adapter.path, dtype=dtype), queries(lm))
    plain = log_probabilities(lm, queries(lm))
    for answer, found, before in zip(seen["answers"], again, plain, strict=True):
        np.testing.assert_array_equal(answer, found)
        assert not np.allclose(answer, before, atol=1e-3)
    found = verify(adapter.path, lm)
    assert found.probes == 4 and found.difference == 0 and found.sha256 == adapter.sha256


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slightly_other_answers_are_found_where_nothing_else_changed(base, good, tmp_path, dtype):
    same = LocalLM.load(base.source, dtype=dtype, device="cpu")
    asked = queries(same)
    wanted = log_probabilities(LocalLM.load(base.source, adapter=good, dtype=dtype, device="cpu"), asked)
    assert check_reload(same, good, asked, wanted) == 0
    copy = shutil.copytree(good, tmp_path / "copy")
    with_weights(copy, lambda w: {k: 1.02 * v for k, v in w.items()})
    with pytest.raises(ModelError, match="other answers than the trained model"):
        check_reload(same, copy, asked, wanted)


def test_verify_needs_no_more_than_the_folder(good):
    found = verify(good)
    assert found.probes == 4 and found.difference < 1e-6
    assert found.matrices == 2 * 2 * 7 and found.idle == 0  # A and B, 2 layers, 7 linear modules each


FLAWS = {
    "no configuration": (lambda f: (f / CONFIG).unlink(), f"has no {CONFIG}"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
    "another byte": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1] + b"\x7f"),
        "differs from what was written",
    ),
    "another option": (
        lambda f: (f / CONFIG).write_text(
            (f / CONFIG).read_text().replace('"lora_alpha": 16', '"lora_alpha": 32')
        ),
        "differs from what was written",
    ),
    "cut short": (
        lambda f: ((f / MANIFEST).unlink(), (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100])),
        "damaged or cut short",
    ),
    "cut inside the header": (
        lambda f: ((f / MANIFEST).unlink(), (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:20])),
        "damaged or cut short",
    ),
    "empty": (
        lambda f: with_weights(f, lambda w: {}),
        "holds no LoRA matrices",
    ),
    "a matrix lost": (
        lambda f: with_weights(f, lambda w: {k: v for k, v in w.items() if k != first(w, "lora_A")}),
        "lacks base_model.model",
    ),
    "a name too many": (
        lambda f: with_weights(
            f, lambda w: {**w, "base_model.model.x.lora_B.weight": w[first(w, "lora_B")].clone()}
        ),
        "no place for",
    ),
    "an adapter's name doubled": (
        lambda f: with_weights(
            f, lambda w: {k.replace(".weight", ".default.weight"): v for k, v in w.items()}
        ),
        "lacks base_model.model",
    ),
    "renamed": (lambda f: with_weights(f, renamed), "lacks base_model.model"),
    "all B zero": (
        lambda f: with_weights(f, lambda w: {k: v * ("lora_B" not in k) for k, v in w.items()}),
        "does nothing: every lora_B matrix is zero",
    ),
    "not a number": (
        lambda f: with_weights(f, lambda w: {**w, (n := first(w, "lora_A")): w[n] * float("nan")}),
        "not finite numbers",
    ),
    "infinite": (
        lambda f: with_weights(f, lambda w: {**w, (n := first(w, "lora_B")): w[n] / 0}),
        "not finite numbers",
    ),
    "another shape": (
        lambda f: with_weights(
            f, lambda w: {k: v[:2] if "lora_A" in k else v[:, :2].clone() for k, v in w.items()}
        ),
        "does not fit",
    ),
    "a manifest that is no JSON": (lambda f: (f / MANIFEST).write_text("{"), "is damaged"),
    "a manifest without base": (lambda f: (f / MANIFEST).write_text("{}"), "is damaged"),
}


@pytest.mark.slow
@pytest.mark.parametrize("flaw", list(FLAWS))
def test_flawed_adapters_are_refused_by_loading_and_by_verify(base, copy, flaw):
    damage, message = FLAWS[flaw]
    damage(copy)
    with pytest.raises(ModelError, match=message):
        load(base, copy)
    with pytest.raises(ModelError, match=message):
        verify(copy, base)


def test_another_base_model_is_refused(good, tmp_path):
    other = LocalLM.load(tiny_llama(tmp_path, seed=1), dtype="float32", device="cpu")
    with pytest.raises(ModelError, match=r"was tuned on .*this base model is another one"):
        load(other, good)
    with pytest.raises(ModelError, match="another one"):
        verify(good, other)


def test_fingerprint_depends_on_the_weights_alone(base, good, tmp_path):
    own = network_fingerprint(base.network)
    half = LocalLM.load(base.source, dtype="bfloat16", device="cpu")
    moved = shutil.copytree(base.source, tmp_path / "elsewhere")
    assert network_fingerprint(half.network) == own
    assert network_fingerprint(LocalLM.load(moved, device="cpu").network) == own
    assert network_fingerprint(load(base, good).network) == own
    changed = LocalLM.load(moved, device="cpu").network
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    assert network_fingerprint(changed) != own


def test_verify_finds_answers_that_changed(base, copy):
    with_weights(copy, lambda w: {k: 1.5 * v for k, v in w.items()}, manifest=True)
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["files"][WEIGHTS] = sha256_of(copy / WEIGHTS)  # whoever changed it knew about the hash
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match="gives other answers than when it was saved"):
        verify(copy, base)


def test_adapter_of_another_program_is_checked_as_far_as_possible(base, copy):
    (copy / MANIFEST).unlink()
    found = verify(copy, base)
    assert found.probes == 0 and found.matrices == 28


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_interrupted_save_leaves_nothing_half_valid(base, good, tmp_path, monkeypatch, dies_at):
    out = shutil.copytree(good, tmp_path / "out")  # an earlier adapter is there
    count, replace = [0], os.replace

    def dying(source, target):
        if str(target).startswith(str(out)) and ".saving" not in str(target) and "adapter" in str(target):
            count[0] += 1
            if count[0] == dies_at:
                raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(integrity.os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        tuned(base, out, layers=1)
    assert count == [dies_at]
    with pytest.raises(ModelError, match=f"has no {CONFIG}"):
        load(base, out)
    monkeypatch.setattr(integrity.os, "replace", replace)
    assert verify(tuned(base, out, layers=1).path, base).matrices == 14


@pytest.mark.slow
def test_evidence_is_never_that_of_an_earlier_adapter(base, tmp_path, monkeypatch):
    out = tmp_path / "out"
    earlier = tuned(base, out)
    write = adapt.write_text

    def dying(path, text):
        if path.name == integrity.EVIDENCE:
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(adapt, "write_text", dying)
    with pytest.raises(KeyboardInterrupt):
        tuned(base, out, layers=1)
    assert (out / MANIFEST).is_file() and not (out / integrity.EVIDENCE).exists()
    monkeypatch.setattr(adapt, "write_text", write)
    later = tuned(base, out, layers=1)
    assert (earlier.evidence["config"]["layers"], later.evidence["config"]["layers"]) == (None, 1)
    assert later.sha256 != earlier.sha256


@pytest.mark.slow
def test_adapter_that_answers_otherwise_is_not_put_in_place(base, tmp_path, monkeypatch):
    answers = log_probabilities

    def shifted(lm, asked):
        return [values + (lm.adapter is None) for values in answers(lm, asked)]

    monkeypatch.setattr(integrity, "log_probabilities", shifted)
    with pytest.raises(ModelError, match="other answers than the trained model"):
        tuned(base, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoints"}


@pytest.mark.slow
@pytest.mark.parametrize(("maker", "method"), [(tiny_llama, "dora"), (tiny_t5, "lora")])
def test_merged_model_answers_as_base_and_adapter(maker, method, tmp_path):
    lm = LocalLM.load(maker(tmp_path / "m"), dtype="float32", device="cpu")
    adapter = tuned(lm, tmp_path / "a", method=method).path
    assert merge(lm, adapter, tmp_path / "plain") < 1e-4
    plain = LocalLM.load(tmp_path / "plain", dtype="float32", device="cpu")
    wanted = log_probabilities(load(lm, adapter), queries(lm))
    for found, right in zip(log_probabilities(plain, queries(lm)), wanted, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-4)
    assert not list((tmp_path / "plain").glob("adapter*"))
    with pytest.raises(StorageError, match="holds other files"):
        merge(lm, adapter, tmp_path / "plain")


def test_exported_adapter_loads_with_peft_alone(base, good, tmp_path):
    import transformers

    names = export(good, tmp_path / "folder")
    assert set(names) == {CONFIG, WEIGHTS, MANIFEST, "evidence.json", "SHA256SUMS"}
    for line in (tmp_path / "folder" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        assert sha256_of(tmp_path / "folder" / name) == digest
    network = transformers.AutoModelForCausalLM.from_pretrained(base.source)
    (ids,) = torch.tensor([base.encode(["Films watched: Heat"])])
    own = load(base, good).network(ids).logits
    with quiet_peft():
        theirs = peft.PeftModel.from_pretrained(network, tmp_path / "folder").eval()(ids).logits
    torch.testing.assert_close(own, theirs)
    export(good, tmp_path / "adapter.zip")
    with zipfile.ZipFile(tmp_path / "adapter.zip") as archive:
        assert set(archive.namelist()) == set(names) and archive.testzip() is None
    with pytest.raises(StorageError, match="there is a file"):
        export(good, tmp_path / "adapter.zip")


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [False, True])
def test_exported_adapter_names_no_place_on_this_machine(base, good, tmp_path, foreign):
    if foreign:  # as another program writes it: without manifest and evidence
        adapter = shutil.copytree(good, tmp_path / "foreign")
        (adapter / MANIFEST).unlink()
        (adapter / integrity.EVIDENCE).unlink()
    else:
        adapter = tuned(base, tmp_path / "second", start=str(good)).path
        assert str(good) in (adapter / integrity.EVIDENCE).read_text()
    assert str(base.source) in (adapter / CONFIG).read_text()
    before = verify(adapter)  # finds the base model by its folder
    out = tmp_path / "out"
    export(adapter, out)
    for path in out.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path
        assert str(base.source).encode() not in path.read_bytes(), path
    assert json.loads((out / CONFIG).read_text())["base_model_name_or_path"] == base.source.name
    after = verify(out, base)
    assert (after.sha256, after.probes) == (before.sha256, before.probes) and after.difference < 1e-6
    assert verify(adapter) == before  # the adapter itself is as it was


def test_damaged_adapter_is_not_exported(copy, tmp_path):
    (copy / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="differs from what was written"):
        export(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
