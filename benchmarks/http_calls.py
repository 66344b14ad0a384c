"""10,000 calls to an endpoint: workers under a cap and a journal against one call after the other.

    python benchmarks/http_calls.py [--quick] [--calls 10000] [--concurrency 64] [--latency 0.05]

The endpoint is the fake one, in a process of its own; it takes `--latency` seconds a call and serves
any number at once. `ours` is `HttpChat` with a file (every attempt reserved and settled on the disk,
every answer stored) under a cap on tokens. The baseline asks with a bare `httpx.Client`, one call
after the other over one connection, on a sample that is scaled to all calls; it keeps no account.
Memory is the resident set when a tenth, and when all, of the calls are done; the questions exist
before the first. `equal` says that both got the same answers, that the endpoint saw each call once,
and that the account holds exactly the tokens it billed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from frugalrec.llm.chat import ChatRequest
from frugalrec.llm.http import CallPolicy, Endpoint, HttpChat, SpendCap
from frugalrec.llm.http.accounts import spent
from frugalrec.llm.http.profiles import chat_body
from frugalrec.rng import derive_seed
from frugalrec.testing.faulty_endpoint import FaultyEndpoint, seeded_faults

KINDS = ("429", "500", "503", "reset")


def reply(body: dict[str, Any]) -> str:
    """Return a ranking of 20 that depends on the question."""
    ids = np.random.default_rng(derive_seed(0, body["messages"][-1]["content"])).permutation(20) + 1
    return json.dumps({"ranking": ids.tolist()})


def serve(latency_s: float, faults: float) -> None:
    """Serve until standard input closes; then say what was billed."""
    plan = seeded_faults(0, faults, KINDS)
    with FaultyEndpoint(
        reply=reply, latency_s=latency_s, faults=plan, retry_after_s=0, keep_bodies=False
    ) as server:
        print(server.url, flush=True)
        sys.stdin.read()
    print(json.dumps({"calls": server.calls, "tokens": server.billed_tokens, "most": server.most_in_flight}))


@contextmanager
def endpoint(latency_s: float, faults: float = 0.0) -> Iterator[tuple[str, dict[str, int]]]:
    """Start the fake endpoint elsewhere; yield its address, and a dictionary that is filled at the end."""
    command = [sys.executable, __file__, "--serve", "--latency", str(latency_s), "--faults", str(faults)]
    truth: dict[str, int] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        yield server.stdout.readline().strip(), truth
        server.stdin.close()
        truth.update(json.loads(server.stdout.readline()))


def questions(n: int, seed: int) -> list[ChatRequest]:
    """Return n questions of some 1,400 characters: 20 watched titles and 20 candidates."""
    requests = []
    for number in range(n):
        draws = [derive_seed(seed, "title", number, i) % 10**6 for i in range(40)]
        watched = "\n".join(f"+ Film number {draw} (1995)" for draw in draws[:20])
        candidates = "\n".join(f"{i}: Film number {draw} (1995)" for i, draw in enumerate(draws[20:], 1))
        user = f"Watched:\n{watched}\nCandidates:\n{candidates}\nAnswer with a JSON object."
        requests.append(ChatRequest(system="You rank films.", user=user, max_tokens=96))
    return requests


def resident_bytes() -> int:
    """Return the resident set of this process now."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def sequential(requests: list[ChatRequest], url: str) -> tuple[list[str], float]:
    """Return (answers, seconds) of one call after the other, in the plainest way."""
    target = Endpoint(base_url=url, model="fake")
    with httpx.Client(trust_env=False, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), timeout=30) as client:
        client.get(url + "/models")
        started = time.perf_counter()
        replies = [client.post(target.url("/chat/completions"), json=chat_body(r, target)) for r in requests]
        seconds = time.perf_counter() - started
    return [r.json()["choices"][0]["message"]["content"] for r in replies], seconds


def concurrent(requests: list[ChatRequest], url: str, concurrency: int, file: Path) -> dict[str, Any]:
    """Answer all requests with HttpChat, and measure."""
    chat = HttpChat(
        Endpoint(base_url=url, model="fake"),
        policy=CallPolicy(concurrency=concurrency, backoff_s=0.05),
        cap=SpendCap(limit=10**9, unit="tokens"),
        file=file,
    )
    memory: dict[int, int] = {}
    marks = {max(1, len(requests) // 10), len(requests)}

    def watch(done: int, _: int) -> None:
        if done in marks:
            memory[done] = resident_bytes()

    started, worked = time.perf_counter(), time.process_time()
    answers, usage = chat.chat(requests, progress=watch)
    return {
        "answers": answers,
        "seconds": time.perf_counter() - started,
        "cpu_s": time.process_time() - worked,
        "memory": [memory[mark] for mark in sorted(marks)],
        "usage": usage,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="500 calls")
    parser.add_argument("--calls", type=int, default=None)
    parser.add_argument("--sample", type=int, default=None, help="calls of the baseline")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.05, help="seconds the endpoint takes")
    parser.add_argument("--faults", type=float, default=0.0, help="share of calls that fail")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.latency, options.faults)
        return
    n = options.calls or (500 if options.quick else 10_000)
    n_sample = min(n, options.sample or (50 if options.quick else 200))
    requests = questions(n, options.seed)
    with endpoint(options.latency) as (url, _):
        words, sample_s = sequential(requests[:n_sample], url)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answers.sqlite"
        with endpoint(options.latency, options.faults) as (url, truth):
            ours = concurrent(requests, url, options.concurrency, file)
        account = spent(file)
    answers, latencies = ours["answers"], np.array([a.latency_s for a in ours["answers"]])
    same = all(a.text in (w, None) for a, w in zip(answers, words, strict=False))
    exact = options.faults > 0 or (truth["calls"] == n and account.tokens == truth["tokens"])
    kept = account.calls == truth["calls"] and account.tokens >= truth["tokens"]
    baseline_s = sample_s / n_sample * n
    print(
        json.dumps(
            {
                "benchmark": "http_calls",
                "ours_s": ours["seconds"],
                "baseline_s": baseline_s,
                "ratio": baseline_s / ours["seconds"],
                "equal": same and exact and kept,
                "calls": n,
                "calls_per_s": n / ours["seconds"],
                "p50_ms": float(np.quantile(latencies, 0.5) * 1e3),
                "p95_ms": float(np.quantile(latencies, 0.95) * 1e3),
                "cpu_ms_per_call": ours["cpu_s"] / n * 1e3,
                "rss_mb_at_a_tenth": ours["memory"][0] / 1e6,
                "rss_mb_at_the_end": ours["memory"][1] / 1e6,
                "rss_bytes_per_call": (ours["memory"][1] - ours["memory"][0]) / (0.9 * n),
                "reasons": dict(Counter(a.reason for a in answers)),
                "endpoint_saw": truth,
                "account_tokens": account.tokens,
                "baseline": f"{n_sample} sequential calls in {sample_s:.2f} s, scaled to {n}",
                "concurrency": options.concurrency,
                "latency_s": options.latency,
                "faults": options.faults,
                "seed": options.seed,
                "httpx": httpx.__version__,
                "python": platform.python_version(),
                "cores": os.cpu_count(),
                "load": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
