"""One thread owns the model: it takes what has arrived, answers it as a batch, and takes the next."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from frugalrec.errors import FrugalrecError
from frugalrec.serving.errors import contained
from frugalrec.serving.jobs import Answer, Job
from frugalrec.serving.limits import Limits

log = logging.getLogger(__name__)
Run = Callable[[Sequence[Job]], list[Answer | Exception]]


class BusyError(FrugalrecError):
    """The queue is full; come back later."""

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ClosedError(FrugalrecError):
    """The server is going down."""


@dataclass
class Counts:
    """What a worker has done so far."""

    jobs: int = 0
    failed: int = 0
    batches: int = 0
    largest_batch: int = 0
    tokens_in: int = 0
    """Prompt tokens, those that did not have to be read included."""
    tokens_cached: int = 0
    tokens_out: int = 0


class Worker:
    """A bounded queue and the thread that empties it."""

    def __init__(self, run: Run, limits: Limits) -> None:
        self.run = run
        self.limits = limits
        self.counts = Counts()
        self._waiting: deque[tuple[Job, Future[Answer]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._stop_by: float | None = None
        self._seconds_a_job = 0.1

    @property
    def queued(self) -> int:
        """Jobs that wait, without those whose clients have gone."""
        with self._changed:
            self._waiting = deque(entry for entry in self._waiting if not entry[1].cancelled())
            return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> list[Future[Answer]]:
        """Queue jobs, all or none.

        Raises:
            BusyError: If they do not fit.
            ClosedError: If the worker is going down.
        """
        futures: list[Future[Answer]] = [Future() for _ in jobs]
        with self._changed:
            if self._closed:
                raise ClosedError("the server is shutting down.")
            if (queued := self.queued) + len(jobs) > self.limits.queue:
                seconds = max(1, math.ceil(self._seconds_a_job * queued))
                raise BusyError(
                    f"{queued} texts are waiting, and the queue holds {self.limits.queue}; "
                    f"try again in {seconds} s.",
                    retry_after_s=seconds,
                )
            self._waiting.extend(zip(jobs, futures, strict=True))
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._loop, name="frugalrec-model", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return futures

    def stopping(self) -> None:
        """Count the time to stop from now: waiting for clients and for the model share it."""
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self.limits.shutdown_s

    def close(self, timeout_s: float | None = None) -> None:
        """Take no more jobs, finish those that wait, and stop; what is not done in time is cancelled.

        Args:
            timeout_s: Seconds to wait; None waits as long as the limits say, from `stopping` on.
        """
        self.stopping()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            left = (self._stop_by or 0.0) - time.monotonic()
            self._thread.join(max(0.0, left if timeout_s is None else timeout_s))
        with self._changed:
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()

    def _loop(self) -> None:
        while (batch := self._next_batch()) is not None:
            if batch:
                self._answer(batch)

    def _next_batch(self) -> list[tuple[Job, Future[Answer]]] | None:
        """Wait for a job and, for a moment, for company; None when all is done."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return None
                self._changed.wait()
            until = time.monotonic() + self.limits.gather_s
            while len(self._waiting) < self.limits.batch and not self._closed:
                if (left := until - time.monotonic()) <= 0 or not self._changed.wait(left):
                    break
            taken = [self._waiting.popleft() for _ in range(min(self.limits.batch, len(self._waiting)))]
        # A job whose client has gone is cancelled, and costs nothing.
        return [(job, future) for job, future in taken if future.set_running_or_notify_cancel()]

    def _answer(self, batch: list[tuple[Job, Future[Answer]]]) -> None:
        started = time.monotonic()
        try:
            results = self.run([job for job, _ in batch])
        except BaseException as error:  # the thread must outlive whatever a model does
            log.exception("a batch failed")
            results = [contained(error)] * len(batch)
        self._count(results, time.monotonic() - started)
        for (_, future), result in zip(batch, results, strict=True):
            if isinstance(result, Answer):
                future.set_result(result)
            else:
                future.set_exception(result)

    def _count(self, results: Sequence[Answer | Exception], seconds: float) -> None:
        counts = self.counts
        counts.jobs += len(results)
        counts.batches += 1
        counts.largest_batch = max(counts.largest_batch, len(results))
        self._seconds_a_job += 0.3 * (seconds / len(results) - self._seconds_a_job)
        for result in results:
            if isinstance(result, Answer):
                counts.tokens_in += result.prompt_tokens
                counts.tokens_cached += result.cached_tokens
                counts.tokens_out += result.completion_tokens
            else:
                counts.failed += 1
