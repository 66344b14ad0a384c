"""Training of POD: losses by hand, invariances, modes, resume, and what is refused at loading."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

import torch

from frugalrec.data.readers.p5 import Explanations
from frugalrec.data.splits import split
from frugalrec.distillation.pod.encoding import Encoder, Row
from frugalrec.distillation.pod.loading import load_pod
from frugalrec.distillation.pod.model import MANIFEST, PodConfig, PodModel
from frugalrec.distillation.pod.rows import PodRows
from frugalrec.distillation.pod.scratch import scratch_t5
from frugalrec.distillation.pod.task import PodTask
from frugalrec.distillation.pod.templates import EXPLANATION, SEQUENTIAL, TASKS, TOP_N, write_ids
from frugalrec.distillation.pod.training import PodTrainer
from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.grounding import TrieGrounder
from frugalrec.grounding.beam_decoding import BeamGrounder
from frugalrec.grounding.candidate_decoding import CandidateGrounder
from frugalrec.grounding.item_ids import random_numbers
from frugalrec.llm.beam_search import BeamSettings
from frugalrec.llm.local import LocalLM
from frugalrec.llm.prompt_vectors import TaskPrompt, add_prompt, token_embeddings
from frugalrec.testing.tiny_models import tiny_llama
from frugalrec.testing.toys import cycle_dataset

FOLDS = split(cycle_dataset(30, 16, 9, seed=1, noise=0.0), "leave-last-out")
IDS = random_numbers(FOLDS.train.item_ids)
WRITER = write_ids(IDS)
SMALL: dict[str, Any] = {
    "weights": {SEQUENTIAL: 1.0, TOP_N: 0.5},
    "n_vectors": 2,
    "negatives": 5,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "validation_users": 6,
}


def t5(folder: Path, **options: Any) -> Path:
    sizes = {"width": 16, "layers": 1, "heads": 2, "feed_forward": 32, "dropout": 0.0}
    return scratch_t5(folder, **{**sizes, **options})


MAKERS: dict[str, Callable[[Path], Path]] = {"t5": t5, "llama": tiny_llama}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in MAKERS.items()}


def loaded(folder: Path) -> LocalLM:
    return LocalLM.load(folder, dtype="float32", device="cpu")


def rows_of(folder: Path, **options: Any) -> tuple[LocalLM, list[Row]]:
    """A model with a prompt, and rows of different lengths and tasks."""
    lm = loaded(folder)
    prompt = TaskPrompt.uniform(TASKS, 2, token_embeddings(lm).shape[1], seed=0)
    add_prompt(lm, prompt)
    config = PodConfig(**{**SMALL, "weights": {SEQUENTIAL: 1.0, TOP_N: 1.0}, **options})
    rows = PodRows(Encoder(lm, WRITER, {t: prompt.text(t) for t in TASKS}), config, FOLDS.train, None)
    draws = [rows.draw(task, 0) for task in (SEQUENTIAL, TOP_N)]
    return lm, [rows.encoder.row(draw, n) for draw in draws for n in (0, 3, 5)]


def naive_losses(lm: LocalLM, row: Row) -> list[float]:
    """Plain transformers, one row and no padding: log-softmax at each answer token."""
    tokens, answer = torch.tensor(row.tokens[None].astype(int)), row.answer.tolist()
    with torch.no_grad():
        if lm.is_encoder_decoder:
            given = torch.tensor([[lm.network.config.decoder_start_token_id, *answer[:-1]]])
            logits = lm.network(input_ids=tokens, decoder_input_ids=given).logits[0]
        else:
            whole = torch.cat([tokens, torch.tensor([answer[:-1]], dtype=torch.long)], dim=1)
            logits = lm.network(input_ids=whole).logits[0, tokens.shape[1] - 1 :]
    found = torch.log_softmax(logits.float(), dim=-1)
    return [-float(found[place, token]) for place, token in enumerate(answer)]


@pytest.mark.parametrize("name", list(MAKERS))
def test_losses_are_means_over_answer_tokens_and_padding_changes_nothing(
    name: str, folders: dict[str, Path]
) -> None:
    lm, rows = rows_of(folders[name])
    lm.network.eval()
    each = [naive_losses(lm, row) for row in rows]
    by_rows, by_tokens = PodTask(lm), PodTask(lm, mean="tokens")
    with torch.no_grad():
        together = float(by_rows.loss(lm.network, by_rows.collate(rows)))
        alone = [float(by_rows.loss(lm.network, by_rows.collate([row]))) for row in rows]
        tokens = float(by_tokens.loss(lm.network, by_tokens.collate(rows)))
        batch = by_rows.collate(rows)
        wider = {k: torch.nn.functional.pad(v, (0, 4)) if v.ndim == 2 else v for k, v in batch.items()}
        padded = float(by_rows.loss(lm.network, wider))
    assert alone == pytest.approx([np.mean(part) for part in each], rel=1e-5)  # a row alone and in a batch
    assert together == pytest.approx(np.mean(alone), rel=1e-5)
    assert tokens == pytest.approx(np.mean([loss for part in each for loss in part]), rel=1e-5)
    assert padded == pytest.approx(together, rel=1e-6)


def test_loss_of_a_uniform_network_is_known_by_hand(folders: dict[str, Path]) -> None:
    lm, rows = rows_of(folders["t5"])
    with torch.no_grad():
        lm.network.get_output_embeddings().weight.zero_()
        task = PodTask(lm)
        found = float(task.loss(lm.network, task.collate(rows)))
    assert found == pytest.approx(np.log(lm.network.get_output_embeddings().weight.shape[0]), rel=1e-6)


def test_loss_with_published_faults_reads_padding(folders: dict[str, Path]) -> None:
    """The mean over all answer columns, padding written as padding: what HF computes without -100."""
    lm, rows = rows_of(folders["t5"])
    short = dataclasses.replace(rows[0], answer=rows[0].answer[-1:])
    rows = [short, *rows[1:3]]
    lm.network.eval()
    width = max(row.answer.size for row in rows)
    labels = torch.zeros((3, width), dtype=torch.long)
    for place, row in enumerate(rows):
        labels[place, : row.answer.size] = torch.from_numpy(row.answer.astype(np.int64))
    task, right = PodTask(lm, pads_in_loss=True), PodTask(lm)
    with torch.no_grad():
        batch = task.collate(rows)
        wanted = lm.network(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
        ).loss
        assert float(task.loss(lm.network, batch)) == pytest.approx(float(wanted), rel=1e-5)
        masked = labels.clone()
        for place, row in enumerate(rows):
            masked[place, row.answer.size :] = -100
        right_tokens = PodTask(lm, mean="tokens")
        wanted = lm.network(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=masked
        ).loss
        found = float(right_tokens.loss(lm.network, right_tokens.collate(rows)))
        assert found == pytest.approx(float(wanted), rel=1e-5)
        assert float(right.loss(lm.network, right.collate(rows))) != pytest.approx(
            float(task.loss(lm.network, batch)), rel=1e-3
        )


@pytest.mark.parametrize("name", list(MAKERS))
def test_judging_repeats_and_is_a_ranking_of_candidates(name: str, folders: dict[str, Path]) -> None:
    lm, rows = rows_of(folders[name])
    encoder = Encoder(lm, WRITER, {SEQUENTIAL: "", TOP_N: ""})
    among = [[rows[n].answer, *(encoder.answers[i] for i in range(n, n + 4))] for n in range(3)]
    kept = [[answer.copy() for answer in group] for group in among]
    task = PodTask(lm, candidates=among)
    first, second = task.judge(lm.network, rows[:3]), task.judge(lm.network, rows[:3])
    assert first == second and len(among[0]) == 5  # nothing was appended
    for group, before in zip(among, kept, strict=True):
        for one, two in zip(group, before, strict=True):
            np.testing.assert_array_equal(one, two)
    gains = []
    for row, group in zip(rows[:3], among, strict=True):
        scores = [-sum(naive_losses(lm, dataclasses.replace(row, answer=a))) for a in group]
        rank = sum(score >= scores[0] - 1e-6 for score in scores[1:])
        gains.append(1 / np.log2(rank + 2))
    assert first["ndcg@10"] == pytest.approx(np.mean(gains), abs=1e-6)
    assert first["loss"] == pytest.approx(1 - first["ndcg@10"])


def fit(folder: Path, out: Path, **options: Any) -> PodModel:
    return PodTrainer(PodConfig(**{**SMALL, **options})).fit(loaded(folder), FOLDS, IDS, out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("t5", "joint"),
        ("t5", "lora+prompt"),
        ("llama", "joint"),
        ("llama", "lora+prompt"),
        ("llama", "prompt-only"),
        ("llama", "prefix-kv"),
    ],
)
def test_each_mode_trains_what_it_says_and_comes_back(
    name: str, mode: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    weights = {SEQUENTIAL: 1.0} if mode == "prefix-kv" else SMALL["weights"]
    rate = 0.05 if mode in ("prompt-only", "prefix-kv") else 1e-2
    model = fit(folders[name], tmp_path / "out", mode=mode, weights=weights, learning_rate=rate, dropout=0.0)
    curve = [loss for _, loss in model.evidence["loss_curve"]]
    assert np.mean(curve[-3:]) < np.mean(curve[:3])
    best = min(model.evidence["validation"], key=lambda entry: entry["loss"])
    assert model.evidence["best_epoch"] == best["epoch"]
    # The loaded model has the best epoch's validation loss: what was saved is what was chosen.
    users = FOLDS.users("valid")
    assert isinstance(model.lm, LocalLM)
    base = loaded(folders[name]).network.state_dict()
    same = all(torch.equal(v, base[k]) for k, v in model.lm.network.state_dict().items() if k in base)
    assert same == (mode in ("prompt-only", "prefix-kv", "lora+prompt"))
    n_vectors = 2 * len(weights) * model.lm.network.config.get_text_config().hidden_size
    if mode == "prompt-only":
        assert model.evidence["trainable_parameters"] == n_vectors
    if mode != "prefix-kv":  # whose keys and values cannot be shared among beams
        grounder = TrieGrounder(model.lm, model.prompt, beams=16, titles=model.writer.answers)
        ranking, _ = grounder.ground(FOLDS.train, users[:4], 5)
        assert all(len(set(row)) == 5 and min(row) >= 0 for row in ranking.items.tolist())
    for user in users[:4].tolist():
        question = model.question(SEQUENTIAL, user, FOLDS.train.history(user).tolist())
        scores, _ = model.lm.loglikelihood([question], [[f" {WRITER.answers[i]}" for i in range(16)]])
        assert np.isfinite(scores[0]).all()
    # A second call finds it finished.
    stamp = (tmp_path / "out" / MANIFEST).stat().st_mtime_ns
    again = fit(folders[name], tmp_path / "out", mode=mode, weights=weights, learning_rate=rate, dropout=0.0)
    assert (tmp_path / "out" / MANIFEST).stat().st_mtime_ns == stamp
    assert again.lm.fingerprint == model.lm.fingerprint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PodModel:
    root = tmp_path_factory.mktemp("trained")
    options = {"epochs": 3, "weights": {SEQUENTIAL: 24.0}, "window": 2, "batch_size": 16}
    rates = {"learning_rate": 5e-3, "choose_by": "ndcg", "validation_users": 30}
    folder = t5(root / "model", width=32)
    return fit(folder, root / "out", **options, **rates, whole_word=True, max_entities=30)


@pytest.mark.slow
def test_a_model_learns_the_ring(model: PodModel) -> None:
    """The next item is always the one after the last on a ring of 16: chance finds it among 6 in the middle."""
    best = max(entry["ndcg@10"] for entry in model.evidence["validation"])
    assert best > 0.75
    users = FOLDS.users("test")
    history = FOLDS.history("test")
    ranking, _ = TrieGrounder(model.lm, model.prompt, beams=16, titles=model.writer.answers).ground(
        history, users, 1
    )
    hits = ranking.items[:, 0] == FOLDS.test.items[FOLDS.test.indptr[users]]
    assert hits.mean() > 0.3  # one of 16 by chance, less the seen ones


def test_every_way_of_grounding_gives_an_item_the_same_score(model: PodModel) -> None:
    """Trie, free beams and candidates against the likelihood of the answer after the model's own question."""
    users, said = FOLDS.users("valid")[:3], {"titles": model.writer.answers}
    everything = np.tile(np.arange(16, dtype=np.int32), (3, 1))
    trie, _ = TrieGrounder(model.lm, model.prompt, beams=16, **said).ground(FOLDS.train, users, 6)
    exact, _ = CandidateGrounder(model.lm, model.prompt, lambda rows: everything[: rows.size], **said).ground(
        FOLDS.train, users, 6
    )
    np.testing.assert_array_equal(trie.items, exact.items)
    np.testing.assert_allclose(trie.scores, exact.scores, atol=1e-4)
    end = model.lm.tokenizer.eos_token
    for row, user in enumerate(users.tolist()):
        question = model.question(SEQUENTIAL, user, FOLDS.train.history(user).tolist())
        texts = [f" {WRITER.answers[item]}{end}" for item in trie.items[row]]
        (wanted,), _ = model.lm.loglikelihood([question], [texts])
        np.testing.assert_allclose(trie.scores[row], wanted, atol=1e-4)
    beams = BeamGrounder(model.lm, model.prompt, settings=BeamSettings(beams=8, max_new_tokens=4), **said)
    first, _ = beams.ground(FOLDS.train, users, 3)
    again, _ = beams.ground(FOLDS.train, users, 3)
    np.testing.assert_array_equal(first.items, again.items)
    assert first.items[0, 0] == trie.items[0, 0]


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["joint", "prompt-only"])
def test_a_killed_run_ends_bit_for_bit_like_an_unbroken_one(
    mode: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = t5(tmp_path / "model", dropout=0.1)  # dropout draws must be resumed too
    options = {"mode": mode, "weights": {SEQUENTIAL: 1.0, TOP_N: 0.5}, "epochs": 3}
    whole = fit(folder, tmp_path / "whole", **options)

    def kill(at: int) -> Callable[[int, int], None]:
        def look(step: int, steps: int) -> None:
            if step == at:
                raise Killed

        return look

    config = PodConfig(**{**SMALL, **options})
    for step in (5, 11):
        with pytest.raises(Killed):
            PodTrainer(config).fit(loaded(folder), FOLDS, IDS, tmp_path / "broken", progress=kill(step))
    broken = PodTrainer(config).fit(loaded(folder), FOLDS, IDS, tmp_path / "broken")
    assert broken.evidence["resumed_at"] > 5
    for field in ("loss_curve", "validation", "best_epoch", "batches"):
        assert broken.evidence[field] == whole.evidence[field]
    assert broken.manifest["files"] == whole.manifest["files"]  # SHA-256 of every weight file
    assert not (tmp_path / "broken" / "checkpoints").exists()


@pytest.mark.slow
def test_wrong_base_vocabulary_catalogue_ids_and_damage_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    fit(folders["t5"], out, mode="prompt-only", epochs=1)
    other = t5(tmp_path / "other", seed=9)
    with pytest.raises(ModelError, match="another one"):
        load_pod(out, WRITER, base=other)
    more = t5(tmp_path / "more", symbols=["<a_1>"])
    with pytest.raises(ModelError, match="another one|vocabulary"):
        load_pod(out, WRITER, base=more)
    catalogue = dataclasses.replace(WRITER, catalogue="0" * 64)
    with pytest.raises(ModelError, match="another catalogue"):
        load_pod(out, catalogue)
    with pytest.raises(ModelError, match="other ids"):
        load_pod(out, write_ids(random_numbers(FOLDS.train.item_ids, seed=5)))
    with pytest.raises(DataError, match="another catalogue"):
        PodTrainer().fit(loaded(folders["t5"]), FOLDS, catalogue, tmp_path / "x")
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    file = next(broken.rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelError, match="differs"):
        load_pod(broken, WRITER)
    (broken / MANIFEST).unlink()
    with pytest.raises(ModelError, match="no frugalrec_pod.json"):
        load_pod(broken, WRITER)


@pytest.mark.slow
def test_a_trained_vocabulary_of_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    fit(folders["t5"], out, mode="joint", epochs=1, weights={SEQUENTIAL: 1.0})
    tokens = json.loads((out / "model" / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]
    (out / "model" / "tokenizer.json").write_text(json.dumps(tokens))
    with pytest.raises(ModelError, match="vocabulary"):
        load_pod(out, WRITER)


@pytest.mark.slow
def test_explanations_are_learned(folders: dict[str, Path], tmp_path: Path) -> None:
    users = np.repeat(np.arange(30, dtype=np.int32), 2)
    items = np.concatenate([FOLDS.train.history(u)[:2] for u in range(30)])
    said = tuple("to take , oldest first ." if i % 2 else "Which one suits ?" for i in items)
    given = Explanations(users=users, items=items, texts=said, features=said, dropped=0)
    config = PodConfig(**{**SMALL, "weights": {EXPLANATION: 1.0}, "epochs": 6, "explanation_tokens": 3})
    trained = PodTrainer(config).fit(loaded(folders["t5"]), FOLDS, IDS, tmp_path / "out", explanations=given)
    curve = [loss for _, loss in trained.evidence["loss_curve"]]
    assert np.mean(curve[-4:]) < 0.5 * np.mean(curve[:2])
    text, _ = trained.lm.generate([trained.question(EXPLANATION, 0, [int(items[0])])], max_new_tokens=5)
    assert text[0].text.split()[:2] in (["to", "take"], ["Which", "one"])
    with pytest.raises(ConfigError, match="knows the tasks"):
        trained.question(SEQUENTIAL, 0, [1])


@pytest.mark.slow
def test_prompts_name_users_where_they_are_written(folders: dict[str, Path], tmp_path: Path) -> None:
    writer = write_ids(IDS, n_users=30)
    config = PodConfig(**{**SMALL, "epochs": 1, "weights": {SEQUENTIAL: 1.0}})
    trained = PodTrainer(config).fit(loaded(folders["t5"]), FOLDS, writer, tmp_path / "out")
    history = FOLDS.train.history(3).tolist()
    said = [writer.answers[item] for item in history]
    assert trained.prompt.question_of(3, said) == trained.question(SEQUENTIAL, 3, history)
    assert f" {writer.users[3]} " in trained.question(SEQUENTIAL, 3, history)  # type: ignore[index]
    with pytest.raises(ConfigError, match="name the user"):
        trained.prompt.question(said)
    grounder = TrieGrounder(trained.lm, trained.prompt, titles=writer.answers)
    ranking, _ = grounder.ground(FOLDS.train, np.array([3, 4]), 3)
    assert (ranking.items >= 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "all"},
        {"n_vectors": 0},
        {"weights": {"songs": 1.0}},
        {"weights": {}},
        {"weights": {SEQUENTIAL: 0.0}},
        {"learning_rate": 2.0},
        {"patience": 0},
        {"mode": "prefix-kv", "weights": {SEQUENTIAL: 1.0, TOP_N: 1.0}},
        {"whole_word": True, "max_entities": 21},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="POD"):
        PodConfig(**options)


def test_rows_of_a_run_do_not_depend_on_the_order_they_are_asked_for(folders: dict[str, Path]) -> None:
    lm, _ = rows_of(folders["t5"])
    openings = {SEQUENTIAL: "<|sequential:0|><|sequential:1|>", TOP_N: "<|top-n:0|><|top-n:1|>"}
    config = PodConfig(**{**SMALL, "weights": {SEQUENTIAL: 1.5, TOP_N: 0.5}})
    one = PodRows(Encoder(lm, WRITER, openings), config, FOLDS.train, None)
    two = PodRows(one.encoder, config, FOLDS.train, None)
    order, ends = one.order()
    assert ends[-1] == len(order) and order == two.order()[0]
    numbers = [number for batch in order for number in batch]
    n = FOLDS.train.n_users
    assert len(numbers) == 2 * (round(1.5 * n) + round(0.5 * n)) == len(set(numbers))
    shuffled = np.random.default_rng(0).permutation(numbers)[:40].tolist()
    for number in shuffled:
        np.testing.assert_array_equal(one[number].tokens, two[number].tokens)
    for batch in order:
        assert len({one[number].task for number in batch}) == 1
