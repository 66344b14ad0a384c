"""What tests of the command line share: calling it, a tiny model, a prompt file."""

import json
import sys

import pytest

from frugalrec.cli import main
from frugalrec.testing.tiny_models import tiny_llama

TITLES = ["Alien (1979)", "Heat (1995)", "Blade Runner (1982)", "The Matrix (1999)", "Fox (2001)"]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["frugalrec", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=2048)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A prompt file as TALLRec's; Yes where the target's number is even."""
    rows = [
        {
            "instruction": "Given the user's preference and unpreference, identify whether ...",
            "input": f'User Preference: "{TITLES[i % 5]}", "{TITLES[(i + 1) % 5]}"\nUser Unpreference: '
            f'"{TITLES[(i + 2) % 5]}"\nWhether the user will like the target movie "{TITLES[(i * 3) % 5]}"?',
            "output": "Yes." if i % 2 == 0 else "No.",
        }
        for i in range(24)
    ]
    path = tmp_path_factory.mktemp("prompts") / "train.json"
    path.write_text(json.dumps(rows, indent=4))
    return path
