"""Training that follows settled batches: patience, epochs of different lengths, resume, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs frugalrec[llm]")
pytest.importorskip("peft", reason="needs frugalrec[llm]")

from frugalrec.errors import ModelError  # noqa: E402
from frugalrec.tuning.schedule import Course  # noqa: E402
from frugalrec.tuning.task import Task  # noqa: E402
from frugalrec.tuning.trained import load_trained_weights, trained_weights  # noqa: E402
from frugalrec.tuning.training import follow  # noqa: E402

ORDER = [[0, 1], [2], [3, 0], [1, 2, 3], [0], [2, 1], [3], [0, 1, 2], [1], [3, 2]]
ENDS = [2, 5, 7, 10]
ITEMS = [(1.0, 2.0), (2.0, 4.5), (-1.0, -2.0), (0.5, 0.0)]


class Line(Task[tuple[float, float]]):
    """y = w x + b by least squares, judged by losses that are told."""

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self.losses, self.judged = list(losses), 0

    def length(self, item: tuple[float, float]) -> int:
        return 1

    def collate(self, items: Sequence[tuple[float, float]]) -> dict[str, Any]:
        x, y = torch.tensor(items).T
        return {"x": x, "y": y}

    def loss(self, model: Any, batch: dict[str, Any]) -> Any:
        return (model(batch["x"][:, None])[:, 0] - batch["y"]).square().mean()

    def queries(self, items: Sequence[tuple[float, float]]) -> list[Any]:
        return []


def line() -> Any:
    model = torch.nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(0.25)
    model.bias.requires_grad_(False)
    return model


def run(model: Any, folder: Path, task: Task[Any] | None = None, **options: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    saved: Callable[[], None] | None = options.pop("saved", None)
    course = Course(**{"order": ORDER, "ends": ENDS, "learning_rate": 0.1, **options})
    weights = [1.0] * len(ITEMS)
    return follow(
        model, task or Line(), ITEMS, course, ITEMS[:2], folder, weights=weights, seed=0, saved=saved
    )


@pytest.mark.slow
def test_steps_are_those_of_a_plain_loop(tmp_path: Path) -> None:
    model, plain = line(), line()
    found = run(model, tmp_path, constant=True, clip=0.0, weight_decay=0.01, patience=None)
    optimizer = torch.optim.AdamW([plain.weight], lr=0.1, weight_decay=0.01)
    curve, judged = [], []
    for step, batch in enumerate(ORDER, start=1):
        x, y = torch.tensor([ITEMS[i] for i in batch]).T
        loss = (plain(x[:, None])[:, 0] - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append((step, float(loss.detach())))
        if step in ENDS:
            with torch.no_grad():
                x, y = torch.tensor(ITEMS[:2]).T
                judged.append((float((plain(x[:, None])[:, 0] - y).square().mean()), plain.weight.clone()))
    assert [step for step, _ in found["loss_curve"]] == [step for step, _ in curve]
    assert [loss for _, loss in found["loss_curve"]] == pytest.approx([loss for _, loss in curve], abs=1e-5)
    assert [entry["loss"] for entry in found["validation"]] == pytest.approx(
        [loss for loss, _ in judged], abs=1e-6
    )
    best = min(range(4), key=lambda e: judged[e][0])
    assert found["best_epoch"] == best + 1
    torch.testing.assert_close(model.weight, judged[best][1])
    assert float(model.bias.detach()) == 0.25  # frozen, and no weight decay either


@pytest.mark.slow
def test_training_stops_without_patience_and_resumes_as_stopped(tmp_path: Path) -> None:
    class Scripted(Line):
        def judge(self, model: Any, items: Any) -> dict[str, float]:
            self.judged += 1
            return {"loss": self.losses[self.judged - 1]}

    model = line()
    found = run(model, tmp_path / "whole", Scripted([3.0, 2.0, 2.5, 1.0]), patience=1)
    assert len(found["loss_curve"]) == 7 and found["best_epoch"] == 2

    class Killed(Exception):
        pass

    def kill() -> None:
        if (tmp_path / "broken" / "checkpoint-7").is_dir():
            raise Killed

    with pytest.raises(Killed):
        run(line(), tmp_path / "broken", Scripted([3.0, 2.0, 2.5, 1.0]), patience=1, saved=kill)
    again, task = line(), Scripted([9.0])
    resumed = run(again, tmp_path / "broken", task, patience=1)
    assert task.judged == 0 and resumed["resumed_at"] == 7
    for field in ("loss_curve", "validation", "best_epoch"):
        assert resumed[field] == found[field]
    assert again.weight.equal(model.weight)


def test_weights_of_another_model_are_refused() -> None:
    model = line()
    kept = trained_weights(model)
    assert list(kept) == ["weight"]
    model.bias.requires_grad_(True)
    with pytest.raises(ModelError, match="bias"):
        load_trained_weights(model, kept)


def test_patience_by_hand() -> None:
    course = Course(order=[], ends=[], learning_rate=0.1, patience=2)
    assert not course.exhausted([])
    assert not course.exhausted([{"loss": loss} for loss in (1.0, 1.0)])
    assert course.exhausted([{"loss": loss} for loss in (1.0, 1.0, 2.0)])
    unlimited = Course(order=[], ends=[], learning_rate=0.1)
    assert not unlimited.exhausted([{"loss": 1.0}] * 50)
