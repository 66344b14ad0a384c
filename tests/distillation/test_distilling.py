"""A worded prompt becomes learned vectors: the student against its teacher, from several sides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("peft", reason="needs frugalrec[llm]")

import torch
from scipy.stats import spearmanr

from frugalrec.distillation.learning import DistilTask
from frugalrec.distillation.lessons import Lesson, lessons, title_queries, yes_no_queries
from frugalrec.distillation.options import DistilOptions
from frugalrec.distillation.saving import load_student, read_student
from frugalrec.distillation.starting import start
from frugalrec.distillation.student import distil_titles, distil_yes_no
from frugalrec.distillation.teacher import taught
from frugalrec.distillation.wording import beginning
from frugalrec.errors import ConfigError, DataError, ModelError
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.kv_prefix import kv_prefix
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt
from frugalrec.llm.preferences import PreferencePrompt
from frugalrec.llm.prompt_files import MANIFEST, WEIGHTS
from frugalrec.llm.prompt_vectors import learned_prompt
from frugalrec.testing.tiny_models import tiny_llama, tiny_t5
from frugalrec.tuning import PointwiseConfig, PointwiseTuner, TrainingRow
from frugalrec.tuning.reload import fresh_copy

FILMS = ("Alien", "Heat", "Blade Runner", "The Matrix", "Fox", "Game", "Book", "Dog")
PLAIN = PreferencePrompt(noun="film", style="plain")
RATED = PreferencePrompt(noun="film", style="rated")
TITLES = NextTitlePrompt(noun="film")


def rows(prompt: PreferencePrompt, n: int = 6, first: int = 0, group: int = 1) -> list[TrainingRow]:
    found = []
    for number in range(first, first + n):
        films = np.random.default_rng(number // group).permutation(FILMS)
        target = FILMS[number % len(FILMS)]
        question = prompt.ask(films[:2].tolist(), films[2:3].tolist(), target)
        found.append(
            TrainingRow(prompt=question.text, label=False, group=number // group, known=question.known)
        )
    return found


def title_rows(n: int = 4) -> list[tuple[list[str], str]]:
    draws = [np.random.default_rng(row).permutation(FILMS).tolist() for row in range(n)]
    return [(films[:3], films[3]) for films in draws]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"llama": tiny_llama(root / "llama"), "t5": tiny_t5(root / "t5")}


def loaded(folder: Path, **options: Any) -> LocalLM:
    return LocalLM.load(folder, dtype="float32", device="cpu", **options)


@pytest.fixture(scope="module")
def adapter(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapter")
    tuner = PointwiseTuner(PointwiseConfig(epochs=1, learning_rate=0.01), answers=PLAIN.answers)
    labelled = [replace(row, label=bool(n % 2)) for n, row in enumerate(rows(PLAIN))]
    return tuner.tune(loaded(folders["llama"]), labelled, None, out).path


def odds(lm: LocalLM, prompt: PreferencePrompt, found: list[TrainingRow]) -> np.ndarray:
    group = PromptGroup(prefix="", suffixes=tuple(row.prompt for row in found))
    (pairs,), _ = lm.choose([group], prompt.answers)
    return pairs[:, 0] - pairs[:, 1]


FEW = DistilOptions(n_vectors=4, epochs=6, learning_rate=0.3, batch_size=3)
RATES = {"llama": 0.3, "t5": 0.03}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_student_comes_closer_to_its_teacher(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = loaded(folders[name])
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    options = replace(FEW, learning_rate=RATES[name])
    found = distil_yes_no(teacher, PLAIN, rows, tmp_path / "out", options=options)
    facts = found.evidence
    assert facts["kl_after"] < 0.95 * facts["kl_before"]
    assert facts["trained_parameters"] == 4 * 32
    assert facts["tokens_learned"] < facts["tokens_worded"] - 8
    student, prompt = load_student(found.path, dtype="float32", device="cpu")
    assert isinstance(prompt, PreferencePrompt)
    # The second oracle: KL of whole distributions, by asking as inference asks, token by token.
    every = np.arange(student.network.get_output_embeddings().weight.shape[0])
    total = 0.0
    for long, short in zip(rows(PLAIN), rows(prompt), strict=True):
        answers = []
        for lm, row in ((teacher, long), (student, short)):
            (query,) = yes_no_queries(lm, [row], PLAIN.answers)
            scorer_says, _ = lm._score([[replace(query, targets=every[None])]])
            answers.append(scorer_says[0][0][0].astype(np.float64))
        total += float((np.exp(answers[0]) * (answers[0] - answers[1])).sum())
    assert total / 6 == pytest.approx(facts["kl_after"], abs=2e-3)
    said = odds(teacher, PLAIN, rows(PLAIN)), odds(student, PLAIN, rows(prompt))
    assert facts["order_after"] == pytest.approx(spearmanr(*said).statistic)
    assert -1 <= facts["order_before"] <= 1
    for key, value in teacher.network.state_dict().items():
        assert torch.equal(value, before[key])
    for (key, own), theirs in zip(teacher.network.named_parameters(), frozen(student), strict=True):
        assert torch.equal(own, theirs), key


def frozen(student: LocalLM) -> list[torch.Tensor]:
    learned = {id(parameter) for parameter in (learned_prompt(student) or torch.nn.Module()).parameters()}
    return [p for p in student.network.parameters() if id(p) not in learned]


@pytest.mark.slow
def test_a_tuned_teacher_and_a_student_with_its_own_matrices(
    folders: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    teacher = loaded(folders["llama"], adapter=adapter)
    kept = (adapter / "adapter_model.safetensors").read_bytes()
    vectors = distil_yes_no(teacher, PLAIN, rows, tmp_path / "vectors", options=FEW, cache=tmp_path / "cache")
    both = replace(FEW, mode="lora", lora_learning_rate=0.01)
    matrices = distil_yes_no(teacher, PLAIN, rows, tmp_path / "both", options=both, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1  # the teacher was asked once
    assert vectors.adapter == adapter and matrices.adapter == tmp_path / "both" / "adapter"
    assert (adapter / "adapter_model.safetensors").read_bytes() == kept
    assert matrices.evidence["kl_after"] < vectors.evidence["kl_after"] < vectors.evidence["kl_before"]
    assert matrices.evidence["kl_before"] == pytest.approx(vectors.evidence["kl_before"], rel=1e-4)
    student, prompt = load_student(matrices.path, dtype="float32", device="cpu")
    assert odds(student, PLAIN, rows(prompt)).shape == (6,)
    with pytest.raises(ModelError, match="no adapter|with adapter"):
        loaded(folders["llama"], prompt=vectors.path)
    with pytest.raises(ModelError, match="load the model with the same adapter"):
        loaded(folders["llama"], adapter=adapter, prompt=matrices.path)


@pytest.mark.slow
def test_fresh_matrices_for_an_untuned_teacher(folders: dict[str, Path], tmp_path: Path) -> None:
    options = replace(FEW, mode="lora", lora_learning_rate=0.01, epochs=2, rank=2)
    found = distil_yes_no(loaded(folders["llama"]), PLAIN, rows, tmp_path / "out", options=options)
    assert found.evidence["kl_after"] < found.evidence["kl_before"]
    student, prompt = load_student(found.path, dtype="float32", device="cpu")
    assert student.adapter == tmp_path / "out" / "adapter" and prompt.learned == options.learned


@pytest.mark.slow
def test_a_whole_prefix_is_the_teacher_and_a_shorter_one_learns(
    folders: dict[str, Path], adapter: Path, tmp_path: Path
) -> None:
    teacher = loaded(folders["llama"], adapter=adapter)
    queries = yes_no_queries(teacher, rows(RATED), RATED.answers)
    student = fresh_copy(teacher, adapter)
    n = len(beginning(student, RATED, queries))
    assert teacher.tokenizer.decode(queries[0].tokens[:n]) == rows(RATED)[0].prompt.split("\n")[0] + "\n"
    start(student, RATED, queries, DistilOptions(mode="prefix-kv", n_vectors=n))
    assert kv_prefix(student) is not None and student.known == queries[0].tokens[:n]
    np.testing.assert_allclose(
        odds(student, RATED, rows(RATED)), odds(teacher, RATED, rows(RATED)), atol=1e-4
    )
    with pytest.raises(ConfigError, match="fewer than n_vectors"):
        start(fresh_copy(teacher, adapter), RATED, queries, DistilOptions(mode="prefix-kv", n_vectors=n + 1))
    options = replace(FEW, mode="prefix-kv", n_vectors=2, learning_rate=0.1)
    found = distil_yes_no(teacher, RATED, rows, tmp_path / "out", options=options)
    assert 1e-4 < found.evidence["kl_after"] < found.evidence["kl_before"]
    cached = found.evidence["tokens_worded_cached"]
    assert found.evidence["tokens_learned"] == pytest.approx(cached)
    again, prompt = load_student(found.path, dtype="float32", device="cpu")
    assert prompt == RATED and again.fingerprint != teacher.fingerprint
    assert odds(again, RATED, rows(RATED)).shape == (6,)
    exact = replace(options, n_vectors=n, epochs=1, learning_rate=1e-6)
    found = distil_yes_no(teacher, RATED, rows, tmp_path / "exact", options=exact)
    assert found.evidence["kl_before"] < 1e-5
    assert found.evidence["order_before"] == pytest.approx(1.0)


@pytest.mark.slow
def test_order_is_compared_inside_each_user(folders: dict[str, Path], tmp_path: Path) -> None:
    """Planted: two users of four candidates each; what stands between users must not count."""
    teacher = loaded(folders["llama"])
    found = distil_yes_no(
        teacher, PLAIN, lambda prompt: rows(prompt, 8, group=4), tmp_path / "out", options=FEW
    )
    student, prompt = load_student(found.path, dtype="float32", device="cpu")
    said = [odds(lm, PLAIN, rows(asked, 8, group=4)) for lm, asked in ((teacher, PLAIN), (student, prompt))]
    own = [spearmanr(said[0][part], said[1][part]).statistic for part in (slice(4), slice(4, 8))]
    assert found.evidence["order_after"] == pytest.approx(np.mean(own))


@pytest.mark.slow
def test_equal_prompts_have_no_order(folders: dict[str, Path], tmp_path: Path) -> None:
    options = replace(FEW, epochs=1)
    found = distil_yes_no(
        loaded(folders["llama"]), PLAIN, lambda prompt: rows(prompt, 1), tmp_path / "out", options=options
    )
    assert found.evidence["order_after"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_titles(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = loaded(folders[name])
    options = replace(FEW, learning_rate=RATES[name])
    found = distil_titles(teacher, TITLES, title_rows(), tmp_path / "out", options=options)
    assert found.evidence["kl_after"] < found.evidence["kl_before"] and "order_after" not in found.evidence
    student, prompt = load_student(found.path, dtype="float32", device="cpu")
    assert isinstance(prompt, NextTitlePrompt)
    shown, title = title_rows()[0]
    assert prompt.question(shown) == f"{FEW.learned[0]}{'; '.join(shown)}{FEW.learned[1]}"
    likely, _ = student.loglikelihood([prompt.question(shown)], [[prompt.answer(title)]])
    assert np.isfinite(likely[0]).all()
    with pytest.raises(ConfigError, match="over the vocabulary"):
        distil_titles(teacher, TITLES, title_rows(), tmp_path / "o", options=replace(FEW, over="answers"))


@pytest.mark.slow
def test_rated_lists_teach_every_answer(folders: dict[str, Path], tmp_path: Path) -> None:
    options = replace(FEW, over="answers", epochs=2)
    found = distil_yes_no(loaded(folders["llama"]), RATED, rows, tmp_path / "out", options=options)
    assert found.evidence["positions_taught"] == 6 * 4
    assert found.evidence["kl_after"] < found.evidence["kl_before"]


@pytest.mark.slow
def test_validation_rows_choose_the_epoch(folders: dict[str, Path], tmp_path: Path) -> None:
    found = distil_yes_no(
        loaded(folders["llama"]),
        PLAIN,
        rows,
        tmp_path / "out",
        options=replace(FEW, learning_rate=1.0),
        validation=lambda prompt: rows(prompt, 4, 100),
    )
    history = found.evidence["validation"]
    best = min(history, key=lambda entry: entry["loss"])
    assert found.evidence["best_epoch"] == best["epoch"]
    assert found.evidence["kl_after"] == pytest.approx(best["loss"], rel=1e-4)


def task_of(lm: LocalLM, group: int, ranking: float, packed: bool) -> tuple[DistilTask, list[Lesson]]:
    table = np.random.default_rng(0).normal(size=(6, 384)).astype(np.float16)
    found = rows(PLAIN, group=group)
    queries = yes_no_queries(lm, found, PLAIN.answers)
    task = DistilTask(
        table, answers_only=False, packed=packed, ranking=ranking, dtype=torch.float32, pad=lm.pad_id
    )
    return task, lessons(queries, queries, [row.group for row in found])


def test_the_loss_by_hand_and_packing_changes_nothing(folders: dict[str, Path]) -> None:
    lm = loaded(folders["llama"])
    values = []
    for packed in (False, True):
        task, items = task_of(lm, 3, 0.7, packed)
        assert [len(item.queries) for item in items] == [3, 3]
        values.append(float(task.loss(lm.network, task.collate(items)).detach()))
        shares = [float(task.loss(lm.network, task.collate([item])).detach()) for item in items]
        assert np.mean(shares) == pytest.approx(values[-1], rel=1e-4)
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    want = torch.from_numpy(task.table.astype(np.float32)).log_softmax(dim=-1)
    have = []
    for query in task.queries(items):
        logits = lm.network(torch.tensor([query.tokens])).logits[0, -1].detach()
        have.append(logits.log_softmax(dim=-1))
    divergence = np.mean([float((w.exp() * (w - h)).sum()) for w, h in zip(want, have, strict=True)])
    yes, no = items[0].queries[0].targets[0].tolist()
    ranked = []
    for part in (slice(0, 3), slice(3, 6)):
        p, q = (torch.stack([t[yes] - t[no] for t in table[part]]).softmax(0) for table in (want, have))
        ranked.append(float((p * (p / q).log()).sum()))
    assert values[0] == pytest.approx(divergence + 0.7 * np.mean(ranked), rel=1e-4)


@pytest.mark.slow
def test_the_teachers_table_is_what_it_answers(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        lm = loaded(folder)
        queries = title_queries(lm, TITLES, title_rows(20))
        table = taught(lm, queries, "vocabulary", tmp_path / name, "key")
        assert table.shape == (sum(len(q.positions) for q in queries), 384)
        at = 0
        for query in queries:
            picked = table[np.arange(at, at + len(query.positions)), query.targets[:, 0]]
            said, _ = lm._score([[query]])
            np.testing.assert_allclose(picked, said[0][0][:, 0], atol=0.02)
            at += len(query.positions)
        few = taught(lm, queries[:2], "answers", tmp_path / name, "key")
        np.testing.assert_array_equal(few[:, 0], picked_of(table, queries[:2]))


def picked_of(table: Any, queries: list[Any]) -> Any:
    targets = np.concatenate([query.targets[:, 0] for query in queries])
    return table[np.arange(len(targets)), targets]


@pytest.mark.slow
def test_the_same_call_is_found_finished_and_damage_is_not(folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = loaded(folders["llama"])
    options = replace(FEW, epochs=1)
    first = distil_yes_no(teacher, PLAIN, rows, tmp_path / "out", options=options)
    weights = (first.path / WEIGHTS).read_bytes()
    steps: list[int] = []

    def again() -> Any:
        return distil_yes_no(
            teacher,
            PLAIN,
            rows,
            tmp_path / "out",
            options=options,
            progress=lambda done, _: steps.append(done),
        )

    assert again().evidence == json.loads(json.dumps(dict(first.evidence))) and not steps
    (first.path / WEIGHTS).unlink()
    assert again().evidence["kl_after"] == first.evidence["kl_after"] and steps
    steps.clear()
    (first.path / MANIFEST).write_text("{")
    assert again().evidence["kl_after"] == first.evidence["kl_after"] and steps
    assert (first.path / WEIGHTS).read_bytes() == weights
    assert not (first.path / "checkpoints").exists()


@pytest.mark.slow
def test_wrong_base_vocabulary_and_damage_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = loaded(folders["llama"])
    found = distil_yes_no(teacher, PLAIN, rows, tmp_path / "out", options=replace(FEW, epochs=1))
    other = tiny_llama(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="was made for .* and this model is another one"):
        load_student(found.path, other, dtype="float32", device="cpu")
    added = loaded(folders["llama"])
    added.tokenizer.add_tokens(["<new>"])
    added.tokenizer.save_pretrained(tmp_path / "more")
    added.network.save_pretrained(tmp_path / "more")
    with pytest.raises(ModelError, match="another vocabulary"):
        load_student(found.path, tmp_path / "more", dtype="float32", device="cpu")
    (found.path / WEIGHTS).write_bytes((found.path / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(ModelError, match="differs from what was written"):
        load_student(found.path, dtype="float32", device="cpu")
    with pytest.raises(ModelError, match="no learned prompt"):
        read_student(tmp_path)


def test_bad_input_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = loaded(folders["llama"])
    with pytest.raises(DataError, match="at least one prompt"):
        distil_titles(teacher, TITLES, [], tmp_path / "o")
    with pytest.raises(DataError, match="more than max_tokens=5"):
        distil_titles(teacher, TITLES, title_rows(), tmp_path / "o", options=replace(FEW, max_tokens=5))
    with pytest.raises(ConfigError, match="distil the worded prompt"):
        distil_titles(teacher, replace(TITLES, learned=("a", "b")), title_rows(), tmp_path / "o")
    with pytest.raises(ModelError, match="prompt vectors"):
        t5 = loaded(folders["t5"])
        distil_titles(t5, TITLES, title_rows(), tmp_path / "o", options=replace(FEW, mode="prefix-kv"))
    for field, value in (
        ("mode", "magic"),
        ("start", "pooled"),
        ("over", "all"),
        ("n_vectors", 0),
        ("cue_vectors", 4),
        ("learning_rate", 0.0),
        ("ranking", -1.0),
    ):
        with pytest.raises(ConfigError, match="distillation: "):
            replace(FEW, **{field: value})


@pytest.mark.parametrize("how", ["words", "vocabulary", "uniform"])
def test_starts(how: Any, folders: dict[str, Path]) -> None:
    shas = []
    for _ in range(2):
        lm = loaded(folders["llama"])
        queries = yes_no_queries(lm, rows(PLAIN), PLAIN.answers)
        (group,) = start(lm, PLAIN, queries, replace(FEW, start=how))
        prompt = learned_prompt(lm)
        assert prompt is not None and group["params"][0] is prompt.weight
        shas.append(prompt.sha256)
        assert [p is prompt.weight for p in lm.network.parameters() if p.requires_grad] == [True]
    assert shas[0] == shas[1]
