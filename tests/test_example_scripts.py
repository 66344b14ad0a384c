"""The examples run, at toy size."""

import importlib.util
from pathlib import Path

from frugalrec import config

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_quickstart_compares_three_models(capsys):
    spec = importlib.util.spec_from_file_location("quickstart", EXAMPLES / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    results = module.main(members=60)
    assert set(results) == {"popularity", "markov", "ease"}
    assert "EASE - popularity" in capsys.readouterr().out


def test_every_configuration_in_the_examples_is_valid():
    files = sorted(EXAMPLES.glob("*.yaml"))
    assert files
    for path in files:
        assert config.load(path, {}).to_yaml()
