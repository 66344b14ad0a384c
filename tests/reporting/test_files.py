import json
import os

import pytest
from sample import bare, sample

from frugalrec.errors import StorageError
from frugalrec.reporting import files, render, render_markdown, verdict, write
from frugalrec.reporting.document import Report

pytestmark = pytest.mark.slow


def test_three_files_are_written_and_nothing_else(tmp_path):
    paths = write(bare(), tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["report.html", "report.md", "report.json"]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["report.html", "report.json", "report.md"]


def test_the_written_json_gives_the_same_page_and_markdown(tmp_path):
    html, markdown, document = write(sample(), tmp_path)
    again = Report.from_dict(json.loads(document.read_text(encoding="utf-8")))
    assert again.verdict == verdict(sample())
    assert render(again) == html.read_text(encoding="utf-8")
    assert render_markdown(again) == markdown.read_text(encoding="utf-8")


def test_writing_again_gives_the_same_bytes(tmp_path):
    first = [path.read_bytes() for path in write(bare(), tmp_path)]
    assert [path.read_bytes() for path in write(bare(), tmp_path)] == first


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rest(tmp_path, monkeypatch):
    write(bare(), tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(StorageError, match=r"No space left on device\. Choose another folder"):
        write(bare(title="Other"), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["report.html", "report.json", "report.md"]


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(StorageError, match="cannot write the report into"):
        write(bare(), tmp_path / "taken")
