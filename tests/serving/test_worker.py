"""The queue and its thread, without a model."""

import threading
from concurrent.futures import CancelledError
from types import SimpleNamespace

import pytest

from frugalrec.errors import ModelError
from frugalrec.serving import worker as worker_module
from frugalrec.serving.jobs import Answer, Job
from frugalrec.serving.limits import Limits
from frugalrec.serving.worker import BusyError, ClosedError, Worker

SMALL = {"batch": 2, "queue": 4, "prompts": 4, "gather_s": 0.0}


def answer(job):
    return Answer(
        text=job.prompt.upper(), finish="stop", prompt_tokens=2, cached_tokens=1, completion_tokens=3
    )


def jobs(text):
    return [Job(prompt=letter) for letter in text]


class Gate:
    """A run that waits until it is let through, and notes its batches."""

    def __init__(self):
        self.entered, self.open = threading.Event(), threading.Event()
        self.batches = []

    def __call__(self, batch):
        self.batches.append("".join(job.prompt for job in batch))
        self.entered.set()
        assert self.open.wait(30)
        return [answer(job) for job in batch]


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def worker(gate):
    made = Worker(gate, Limits(**SMALL))
    yield made
    gate.open.set()
    made.close(10)


def blocked(worker, gate):
    (first,) = worker.submit(jobs("a"))
    assert gate.entered.wait(30)
    return first


def test_answers_come_in_order_and_batches_hold_at_most_so_many(worker, gate):
    first = blocked(worker, gate)
    others = worker.submit(jobs("bcd"))
    gate.open.set()

    assert [future.result(30).text for future in [first, *others]] == ["A", "B", "C", "D"]
    assert gate.batches == ["a", "bc", "d"]
    worker.close(10)
    assert (worker.counts.jobs, worker.counts.batches, worker.counts.largest_batch) == (4, 3, 2)
    assert (worker.counts.tokens_in, worker.counts.tokens_cached, worker.counts.tokens_out) == (8, 4, 12)


def test_a_full_queue_takes_all_or_none_and_says_when_to_come_back(worker, gate):
    blocked(worker, gate)
    worker.submit(jobs("bcd"))

    with pytest.raises(BusyError, match="3 texts are waiting, and the queue holds 4") as busy:
        worker.submit(jobs("ef"))

    assert busy.value.retry_after_s >= 1
    assert worker.queued == 3
    worker.submit(jobs("e"))


def test_a_cancelled_job_costs_nothing(worker, gate):
    blocked(worker, gate)
    second, third = worker.submit(jobs("bc"))
    assert second.cancel()
    gate.open.set()

    assert third.result(30).text == "C"
    assert gate.batches == ["a", "c"]


def test_cancelled_jobs_leave_their_place_in_the_queue(worker, gate):
    first = blocked(worker, gate)
    gone = worker.submit(jobs("bcde"))
    for future in gone[1:]:
        assert future.cancel()

    assert worker.queued == 1
    later = worker.submit(jobs("fgh"))
    with pytest.raises(BusyError, match="4 texts are waiting"):
        worker.submit(jobs("i"))

    gate.open.set()
    assert [future.result(30).text for future in [first, gone[0], *later]] == list("ABFGH")


def test_closing_finishes_what_waits_and_takes_no_more(worker, gate):
    first = blocked(worker, gate)
    (second,) = worker.submit(jobs("b"))
    gate.open.set()
    worker.close(10)

    assert [first.result(0).text, second.result(0).text] == ["A", "B"]
    with pytest.raises(ClosedError):
        worker.submit(jobs("c"))


def test_closing_in_a_hurry_cancels_what_has_not_begun(worker, gate):
    blocked(worker, gate)
    (second,) = worker.submit(jobs("b"))
    worker.close(0)

    with pytest.raises(CancelledError):
        second.result(0)


def test_the_time_to_stop_runs_from_its_begin(worker, gate, monkeypatch):
    now, waited = [100.0], []
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    blocked(worker, gate)
    monkeypatch.setattr(worker._thread, "join", waited.append)
    worker.stopping()
    for later in (110.0, 200.0):  # of 30 seconds, clients took 10; then more than there were
        now[0] = later
        worker.stopping()
        worker.close()
    worker.close(7)

    assert waited == [20.0, 0.0, 7]
    monkeypatch.undo()


class Panic(BaseException):
    """As compiled code raises it."""


@pytest.mark.parametrize(("raised", "told"), [(MemoryError, MemoryError), (Panic, ModelError)])
def test_the_thread_outlives_a_failing_model(raised, told):
    def run(batch):
        if batch[0].prompt == "x":
            raise raised("too much")
        return [answer(job) for job in batch]

    worker = Worker(run, Limits(**SMALL))
    (bad,) = worker.submit(jobs("x"))
    with pytest.raises(told, match="too much"):
        bad.result(30)
    (good,) = worker.submit(jobs("y"))
    assert good.result(30).text == "Y"
    worker.close(10)
    assert (worker.counts.failed, worker.counts.jobs) == (1, 2)


def test_a_thread_that_died_is_followed_by_another(worker, gate, monkeypatch):
    gate.open.set()
    monkeypatch.setattr(worker, "_next_batch", lambda: None)
    (waiting,) = worker.submit(jobs("a"))
    worker._thread.join(30)
    monkeypatch.undo()

    (other,) = worker.submit(jobs("b"))
    assert [waiting.result(30).text, other.result(30).text] == ["A", "B"]
