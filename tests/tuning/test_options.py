import os
import re
import subprocess
import sys

import numpy as np
import pytest

from frugalrec.errors import ConfigError, MissingExtraError, ModelError
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.tuning import options
from frugalrec.tuning.generative import GenerativeConfig, GenerativeTuner
from frugalrec.tuning.pointwise import PointwiseConfig
from frugalrec.tuning.schedule import shares

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
pytest.importorskip("peft", reason="needs frugalrec[llm]")

from safetensors.torch import load_file  # noqa: E402

from frugalrec.llm.local import LocalLM  # noqa: E402
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5  # noqa: E402
from frugalrec.tuning import lora  # noqa: E402
from frugalrec.tuning.instructions import Instruction, InstructionTuner  # noqa: E402
from frugalrec.tuning.options import TuningOptions  # noqa: E402
from frugalrec.tuning.reload import check_four_bit  # noqa: E402

PROMPT = NextTitlePrompt(noun="film")
TITLES = ["Alien", "Heat", "Blade Runner", "The Matrix", "Fox"]
ROWS = [([TITLES[i % 5], TITLES[(i * 2) % 5]][: 1 + i % 2], TITLES[(i + 1) % 5]) for i in range(11)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return LocalLM.load(tiny_llama(tmp_path_factory.mktemp("llama")), dtype="float32", device="cpu")


def tuned(base, out, **given):
    config = GenerativeConfig(**{"epochs": 2, "learning_rate": 1e-2, "batch_size": 4, "dropout": 0.0} | given)
    return GenerativeTuner(config, prompt=PROMPT).tune(base, ROWS, ROWS[:3], out)


def weights(adapter):
    return load_file(adapter.path / "adapter_model.safetensors")


def test_shares_weigh_as_the_whole_batch():
    rng = np.random.default_rng(0)
    values, counts = rng.normal(size=9), rng.integers(1, 5, 9).astype(float)
    for batch in ([3, 1, 8, 0, 5], [2], [7, 6]):
        whole = np.average(values[batch], weights=counts[batch])
        for parts in (1, 2, 3, 7):
            cut = shares(batch, counts.tolist(), parts)
            assert len(cut) == parts
            means = [factor * np.average(values[rows], weights=counts[rows]) for rows, factor in cut]
            assert np.mean(means) == pytest.approx(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"accumulation": 2}, {"accumulation": 3}, {"gradient_checkpointing": True}]
)
def test_memory_savers_change_no_number(base, tmp_path, change):
    # 11 rows in steps of 4: the last step of an epoch has 3 rows, so shares are uneven or empty.
    whole, saved = tuned(base, tmp_path / "a"), tuned(base, tmp_path / "b", **change)
    losses = [[loss for _, loss in run.evidence["loss_curve"]] for run in (whole, saved)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    for name, matrix in weights(whole).items():
        np.testing.assert_allclose(matrix, weights(saved)[name], atol=2e-3)


@pytest.mark.slow
def test_gradient_checkpointing_in_an_encoder_decoder(tmp_path):
    lm = LocalLM.load(tiny_t5(tmp_path / "m"), dtype="float32", device="cpu")
    whole = tuned(lm, tmp_path / "a")
    saved = tuned(lm, tmp_path / "b", gradient_checkpointing=True)
    assert saved.evidence["loss_curve"][-1][1] == pytest.approx(whole.evidence["loss_curve"][-1][1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rslora", "dora"])
def test_other_kinds_of_lora_are_tuned_and_reload(base, tmp_path, method):
    adapter = tuned(base, tmp_path, method=method)
    plain = lora.add_lora(
        LocalLM.load(base.source, device="cpu").network,
        rank=8, alpha=16, dropout=0.0, targets="all-linear", seed=0, method=method,
    )  # fmt: skip
    layer = plain.base_model.model.model.layers[0].self_attn.q_proj
    # alpha / rank = 2, alpha / sqrt(rank) = 5.66
    assert layer.scaling["default"] == pytest.approx(16 / 8**0.5 if method == "rslora" else 2)
    assert any("magnitude" in name for name in weights(adapter)) == (method == "dora")
    assert adapter.evidence["reload_difference"] < 1e-5


@pytest.mark.parametrize(("layers", "count"), [(None, 2), (1, 1)])
def test_one_name_means_the_same_with_and_without_layers(base, layers, count):
    named = []
    for targets in ("q_proj", ["q_proj"]):
        model = lora.add_lora(
            LocalLM.load(base.source, device="cpu").network,
            rank=2, alpha=4, dropout=0.0, targets=targets, seed=0, layers=layers,
        )  # fmt: skip
        named.append(sorted(name for name in lora.adapter_weights(model) if "lora_A" in name))
    assert named[0] == named[1] and len(named[0]) == count
    assert all(".self_attn.q_proj." in name for name in named[0])


def test_four_bits_without_gpu_name_the_remedy(base, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ModelError, match="needs a CUDA device.*choose method=lora"):
        tuned(base, tmp_path, method="qlora")


def test_four_bits_without_their_package_name_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install bitsandbytes"):
        check_four_bit()


def test_unknown_and_missing_trackers_are_told_at_once(monkeypatch):
    with pytest.raises(ConfigError, match="no tracker 'neptun'; choose from tensorboard, wandb, mlflow"):
        TuningOptions(report_to=("neptun",))
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        TuningOptions(report_to=("wandb",))


@pytest.mark.slow
def test_trackers_are_told_every_loss(base, tmp_path, monkeypatch):
    import transformers
    from transformers.integrations import integration_utils

    told = []

    class Tracker(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            told.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    monkeypatch.setattr(options.importlib.util, "find_spec", lambda name: True)
    adapter = tuned(base, tmp_path, report_to=("tensorboard",))
    losses = [[step, logs["loss"]] for step, logs in told if "loss" in logs]
    assert losses == adapter.evidence["loss_curve"] and len(losses) == 6  # 11 rows, 4 a step, 2 epochs
    judged = {step: logs["validation_loss"] for step, logs in told if "validation_loss" in logs}
    assert judged == {3 * e["epoch"]: e["loss"] for e in adapter.evidence["validation"]}


def test_bad_options_name_the_value():
    for given, message in (
        ({"layers": 0}, "layers must be at least 1, not 0"),
        ({"accumulation": 0}, "accumulation must be at least 1, not 0"),
        ({"method": "lorra"}, "unknown method 'lorra'; choose one of lora, rslora, dora, qlora"),
        ({"dropout": 1.0}, "below 1, not 1.0"),
        ({"epochs": 2.5}, "epochs must be a whole number, not 2.5"),
        ({"epochs": True}, "epochs must be a whole number, not True"),
        ({"epochs": None}, "epochs must be a whole number, not None"),
        ({"layers": 1.5}, "layers must be a whole number or null, not 1.5"),
        ({"learning_rate": "5e-4"}, "learning_rate must be a number, not '5e-4'"),
        ({"target_modules": 5}, "target_modules must be a text or a list of texts, not 5"),
        ({"target_modules": ("q_proj", 5)}, "target_modules must be a text or a list of texts"),
        ({"gradient_checkpointing": "maybe"}, "gradient_checkpointing must be true or false, not 'maybe'"),
        ({"method": 5}, "method must be a text, not 5"),
        ({"report_to": "wandb"}, "report_to must be a list of texts, not 'wandb'"),
    ):
        with pytest.raises(ConfigError, match=message):
            TuningOptions(**given)
    with pytest.raises(ConfigError, match="packing must be true or false, not 1"):
        PointwiseConfig(packing=1)
    assert TuningOptions(dropout=0, target_modules=("q_proj",), layers=2, start="a").dropout == 0


@pytest.mark.slow
def test_second_stage_starts_where_the_first_ended(base, tmp_path):
    rows = [Instruction(instruction="Say it twice.", input=t, output=f"{t} {t}") for t in TITLES]
    config = TuningOptions(epochs=2, learning_rate=1e-2, batch_size=2, rank=4)
    first = InstructionTuner(config).tune(base, rows, None, tmp_path / "first")
    assert first.evidence["rows"] == 5 and first.evidence["loss_curve"]
    still = tuned(base, tmp_path / "still", rank=4, epochs=1, learning_rate=1e-9, start=str(first.path))
    for name, matrix in weights(first).items():
        np.testing.assert_allclose(matrix, weights(still)[name], atol=1e-7)
    for name, change, message in (
        ("rank", {"rank": 2}, "has r=4, and the options say 2.*the same rank"),
        ("alpha", {"alpha": 8}, "has lora_alpha=16, and the options say 8.*the same alpha"),
        ("rslora", {"method": "rslora"}, "has use_rslora=False.*say True.*the same method"),
        ("dora", {"method": "dora"}, "has use_dora=False.*say True.*the same method"),
    ):
        with pytest.raises(ModelError, match=message):
            tuned(base, tmp_path / name, **{"rank": 4, "start": str(first.path)} | change)
    other = LocalLM.load(tiny_llama(tmp_path / "other", seed=1), dtype="float32", device="cpu")
    with pytest.raises(ModelError, match="was tuned on .*this base model is another one"):
        tuned(other, tmp_path / "base", rank=4, start=str(first.path))
    with pytest.raises(ModelError, match="no place for"):
        tuned(base, tmp_path / "layers", rank=4, layers=1, start=str(first.path))
    with pytest.raises(ModelError, match="is not an adapter"):
        tuned(base, tmp_path / "none", start=str(tmp_path / "nothing"))


@pytest.mark.slow
def test_finished_call_is_found_finished(base, tmp_path):
    adapter = tuned(base, tmp_path)
    written = (tmp_path / "evidence.json").stat().st_mtime_ns
    assert tuned(base, tmp_path).sha256 == adapter.sha256
    assert (tmp_path / "evidence.json").stat().st_mtime_ns == written
    assert tuned(base, tmp_path, seed=1).sha256 != adapter.sha256
    (tmp_path / "adapter_model.safetensors").write_bytes(b"damaged")
    assert tuned(base, tmp_path).sha256 == adapter.sha256


TWO = """
import sys
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.tuning.processes import join
from frugalrec.tuning.generative import GenerativeConfig, GenerativeTuner
join()
base = LocalLM.load(sys.argv[1], dtype="float32", device="cpu")
titles = ["Alien", "Heat", "Blade Runner", "The Matrix", "Fox"]
rows = [([titles[i % 5], titles[(i * 2) % 5]][: 1 + i % 2], titles[(i + 1) % 5]) for i in range(11)]
config = GenerativeConfig(epochs=2, learning_rate=1e-2, batch_size=4, dropout=0.0)
adapter = GenerativeTuner(config, prompt=NextTitlePrompt(noun="film")).tune(base, rows, rows[:3], __import__("pathlib").Path(sys.argv[2]))
print(adapter.sha256)
"""


@pytest.mark.slow
def test_two_processes_train_what_one_does(base, tmp_path):
    pytest.importorskip("accelerate")
    (tmp_path / "two.py").write_text(TWO)
    # What `accelerate launch` starts on several GPUs, here on CPUs.
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, str(tmp_path / "two.py"), str(base.source), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    hashes = re.findall(r"[0-9a-f]{64}", result.stdout)  # both may write into one line
    assert len(hashes) == 2 and len(set(hashes)) == 1
    one = tuned(base, tmp_path / "one")
    for name, matrix in weights(one).items():
        np.testing.assert_allclose(
            matrix, load_file(tmp_path / "two" / "adapter_model.safetensors")[name], atol=2e-3
        )
