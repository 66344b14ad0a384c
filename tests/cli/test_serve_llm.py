"""serve-llm: refusals in one line, and a real process that answers and ends in order."""

import os
import signal
import subprocess
import sys

import httpx
import pytest

pytest.importorskip("uvicorn", reason="needs frugalrec[serve]")


def test_other_machines_are_let_in_only_knowingly(command, model, monkeypatch):
    monkeypatch.delenv("FRUGALREC_API_KEY", raising=False)
    code, _, err = command("serve-llm", model, "--host", "0.0.0.0")
    assert code == 2 and "--allow-remote" in err
    code, _, err = command("serve-llm", model, "--host", "0.0.0.0", "--allow-remote")
    assert code == 2 and "FRUGALREC_API_KEY" in err


def test_bad_options_and_missing_models_are_one_line(command, model):
    assert command("serve-llm", model, "--port", "70000")[0] == 2
    code, _, err = command("serve-llm", model, "--batch", "0")
    assert code == 2 and "batch must be at least 1" in err
    code, _, err = command("serve-llm", "no-such-model-here", "--port", "0")
    assert code == 2 and "no-such-model-here" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_server_answers_with_its_key_and_ends_in_order(model):
    script = "from frugalrec.cli import main; main()"
    arguments = ["serve-llm", str(model), "--port", "0", "--name", "tiny", "--device", "cpu"]
    server = subprocess.Popen(
        [sys.executable, "-u", "-c", script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FRUGALREC_API_KEY": "sesame"},
    )
    try:
        line = server.stdout.readline()
        address = line.split(" is served at ")[1].split(";")[0]
        body = {"prompt": "the quick", "max_tokens": 3, "temperature": 0}
        assert httpx.post(f"{address}/completions", json=body, timeout=60).status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        reply = httpx.post(f"{address}/completions", json=body, headers=headers, timeout=60)
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == "tiny"
    finally:
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
    assert "Traceback" not in errors
    assert "sesame" not in errors
