"""POD in words alone: what is asked, that the bare form is never seen, and the way to disk and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch

from frugalrec.data.splits import split
from frugalrec.distillation.pod.encoding import Encoder
from frugalrec.distillation.pod.loading import load_pod
from frugalrec.distillation.pod.model import PodConfig, PodModel
from frugalrec.distillation.pod.rows import PodRows
from frugalrec.distillation.pod.scratch import scratch_t5
from frugalrec.distillation.pod.templates import (
    EXPLANATION,
    SEQUENTIAL,
    TASKS,
    TEMPLATES,
    TOP_N,
    IdWriter,
    asked,
    bare,
    draw_templates,
    write_ids,
)
from frugalrec.distillation.pod.training import PodTrainer
from frugalrec.errors import ConfigError, ModelError
from frugalrec.grounding import TrieGrounder
from frugalrec.grounding.candidate_decoding import CandidateGrounder
from frugalrec.grounding.item_ids import random_numbers
from frugalrec.llm.prompt_vectors import learned_prompt
from frugalrec.testing.tiny_models import tiny_llama
from frugalrec.testing.toys import cycle_dataset

FOLDS = split(cycle_dataset(24, 16, 9, seed=1, noise=0.0), "leave-last-out")
IDS = random_numbers(FOLDS.train.item_ids)
WRITER = write_ids(IDS)
NAMED = IdWriter(
    items=("item_07", "item_1", "item_22"),
    answers=("07", "1", "22"),
    users=("user_5", "user_40"),
    catalogue="",
)
CONFIG = PodConfig(
    mode="discrete",
    weights={SEQUENTIAL: 1.0, TOP_N: 0.5},
    negatives=5,
    epochs=2,
    batch_size=8,
    learning_rate=1e-2,
    validation_users=6,
    window=3,
)


def t5(folder: Path, dropout: float = 0.0) -> Path:
    return scratch_t5(folder, width=16, layers=1, heads=2, feed_forward=32, dropout=dropout)


@pytest.fixture(scope="module", params=[t5, tiny_llama], ids=["t5", "llama"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PodModel:
    root = tmp_path_factory.mktemp("trained")
    return PodTrainer(CONFIG).fit(request.param(root / "base"), FOLDS, WRITER, root / "out")


def test_words_are_asked_where_there_are_no_vectors() -> None:
    assert {task: asked(task, worded=True) for task in TASKS} == dict.fromkeys(TASKS, 0)
    assert {task: asked(task, worded=False) for task in TASKS} == {task: bare(task) for task in TASKS}
    wanted = {
        SEQUENTIAL: " user_40 went through item_22 item_07 , oldest first . Name what comes after these .",
        TOP_N: " Only one of item_22 item_07 suits user_40 . Name it .",
        EXPLANATION: " Say in a sentence why user_40 would like item_22 item_07 or not .",
    }
    for task, text in wanted.items():
        assert NAMED.text(task, asked(task, worded=True), 1, [2, 0]) == text
    assert NAMED.text(SEQUENTIAL, 0, None, [2]).startswith(" went through item_22 ,")


@pytest.mark.slow
def test_prompts_are_the_first_template_byte_for_byte(trained: PodModel) -> None:
    cue = "" if trained.lm.is_encoder_decoder else " ->"
    first, second, third, last = (f"item_{WRITER.answers[item]}" for item in (3, 9, 0, 12))
    text = (
        f" someone went through {second} {third} {last} , oldest first . Name what comes after these .{cue}"
    )
    assert trained.question(SEQUENTIAL, 5, [3, 9, 0, 12]) == text  # a window of three
    said = [WRITER.answers[item] for item in (3, 9, 0, 12)]
    assert trained.prompt.question(said) == trained.prompt.question_of(5, said) == text
    assert trained.prompt.shown(said) == [second, third, last]
    text = f" Only one of {first} {second} {third} {last} suits someone . Name it .{cue}"
    assert trained.question(TOP_N, 5, [3, 9, 0, 12]) == text
    assert learned_prompt(trained.lm) is None and "<|" not in text
    with pytest.raises(ConfigError, match="knows the tasks"):
        trained.question(EXPLANATION, 0, [1])


def test_templates_are_drawn_alike_among_the_worded_ones() -> None:
    n = 20_000
    for task in TASKS:
        drawn = draw_templates(task, n, 0, 3, worded=True)
        shares = np.bincount(drawn, minlength=len(TEMPLATES[task])) / n
        assert shares[bare(task)] == 0
        np.testing.assert_allclose(shares[:-1], 1 / bare(task), atol=0.02)


def test_rows_of_a_run_are_worded_texts_alone(trained: PodModel) -> None:
    """The samples are those of the same run with vectors, other than in the words around them."""
    encoder = Encoder(trained.lm, WRITER, dict.fromkeys(CONFIG.tasks, ""))
    rows = PodRows(encoder, CONFIG, FOLDS.train, None)
    joint = PodRows(encoder, PodConfig(weights=CONFIG.weights, negatives=5, window=3), FOLDS.train, None)
    for task in CONFIG.tasks:
        draw, other = rows.draw(task, 1), joint.draw(task, 1)
        for field in ("users", "indptr", "items", "targets"):
            np.testing.assert_array_equal(getattr(draw, field), getattr(other, field))
        assert bare(task) in other.templates and bare(task) not in draw.templates
        for row in range(len(draw)):
            shown = draw.shown(row).tolist()
            text = WRITER.text(task, int(draw.templates[row]), 0, shown) + encoder.cue
            assert encoder.prompt(draw, row).tolist() == trained.lm.encode([text])[0]
            assert len(text.split()) > len(shown) + 2


def test_a_loaded_model_gives_the_same_scores(trained: PodModel) -> None:
    assert not (trained.folder / "prompt").exists() and (trained.folder / "model").is_dir()
    curve = [loss for _, loss in trained.evidence["loss_curve"]]
    assert np.mean(curve[-3:]) < np.mean(curve[:3])
    again = load_pod(trained.folder, WRITER, dtype="float32", device="cpu")
    assert again.lm.fingerprint == trained.lm.fingerprint
    users = FOLDS.users("valid")[:4]
    everything = np.tile(np.arange(16, dtype=np.int32), (4, 1))
    exact, beams = [], []
    for model in (trained, again):
        said: Any = {"titles": model.writer.answers}
        way = CandidateGrounder(model.lm, model.prompt, lambda rows: everything[: rows.size], **said)
        exact.append(way.ground(FOLDS.train, users, 5)[0])
        trie = TrieGrounder(model.lm, model.prompt, beams=16, **said)
        beams.append(trie.ground(FOLDS.train, users, 5)[0])
    np.testing.assert_array_equal(exact[0].scores, exact[1].scores)
    np.testing.assert_array_equal(beams[0].items, exact[1].items)
    np.testing.assert_allclose(beams[0].scores, exact[1].scores, atol=1e-4)
    end = again.lm.tokenizer.eos_token
    for row, user in enumerate(users.tolist()):  # what the words are followed by, without any grounder
        question = again.question(SEQUENTIAL, user, FOLDS.train.history(user).tolist())
        texts = [f" {WRITER.answers[item]}{end}" for item in exact[0].items[row]]
        (wanted,), _ = again.lm.loglikelihood([question], [texts])
        np.testing.assert_allclose(exact[0].scores[row], wanted, atol=1e-4)


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_like_an_unbroken_one(tmp_path: Path) -> None:
    base = t5(tmp_path / "base", dropout=0.1)

    def fit(out: str, progress: Callable[[int, int], None] | None = None) -> PodModel:
        return PodTrainer(CONFIG).fit(base, FOLDS, WRITER, tmp_path / out, progress=progress)

    def kill(step: int, _: int) -> None:
        if step == 6:
            raise Killed

    whole = fit("whole")
    with pytest.raises(Killed):
        fit("broken", kill)
    broken = fit("broken")
    assert broken.evidence["resumed_at"] > 0
    for field in ("loss_curve", "validation", "best_epoch"):
        assert broken.evidence[field] == whole.evidence[field]
    assert broken.manifest["files"] == whole.manifest["files"]
    stamp = (tmp_path / "broken" / "frugalrec_pod.json").stat().st_mtime_ns
    assert fit("broken").lm.fingerprint == broken.lm.fingerprint
    assert (tmp_path / "broken" / "frugalrec_pod.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_another_vocabulary_and_another_catalogue_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = PodConfig(mode="discrete", epochs=1, validation_users=0)
    model = PodTrainer(config).fit(t5(tmp_path / "base"), FOLDS, WRITER, out)
    assert all(torch.isfinite(tensor).all() for tensor in model.lm.network.state_dict().values())
    with pytest.raises(ModelError, match="other ids"):
        load_pod(out, write_ids(random_numbers(FOLDS.train.item_ids, seed=5)))
    path = out / "model" / "tokenizer.json"
    tokens = json.loads(path.read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]
    path.write_text(json.dumps(tokens))
    with pytest.raises(ModelError, match="another vocabulary"):
        load_pod(out, WRITER)


@pytest.mark.parametrize("options", [{"whole_word": True}, {"prompt_learning_rate": 1e-2}])
def test_what_needs_vectors_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no learned vectors"):
        PodConfig(mode="discrete", **options)
