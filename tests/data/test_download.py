"""Downloads against a mock transport and a loopback server; the network is never touched."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import stat
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from frugalrec.data import download
from frugalrec.data.download import SOURCES, RemoteFile, Source, get
from frugalrec.data.readers import read
from frugalrec.errors import ConfigError, DownloadError, StorageError

URL = "https://data.example/toy.zip"


def archive(members: dict[str, str], links: tuple[str, ...] = (), compression: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as bundle:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if name in links:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            bundle.writestr(info, content, compression)
    return buffer.getvalue()


TOY = archive(
    {
        "ml-toy/": "",
        "ml-toy/ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n",
        "ml-toy/movies.csv": "movieId,title,genres\n1,Toy (1995),Comedy\n",
        "ml-toy/docs/README.txt": "terms",
        "__MACOSX/x": "junk",
    }
)


# A compressed archive with a block of its data overwritten, its directory intact.
PACKED = archive({"a.txt": "".join(map(str, range(5000)))}, compression=zipfile.ZIP_DEFLATED)
BROKEN = PACKED[:2000] + bytes(500) + PACKED[2500:]


@pytest.fixture
def listed(monkeypatch):
    """Put a data set of one zip archive into the table, with the given checksum."""

    def put(md5: str | None = None, **files: RemoteFile) -> None:
        remote = tuple(files.values()) or (RemoteFile(url=URL, md5=md5),)
        monkeypatch.setattr(download, "SOURCES", {"toy": Source(files=remote, page="https://data.example")})

    return put


def serving(content: bytes, status: int = 200) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(lambda _: httpx.Response(status, content=content)))


def test_an_archive_is_fetched_checked_and_unpacked_without_its_top_folder(tmp_path, listed):
    listed(hashlib.md5(TOY).hexdigest())
    seen: list[tuple[int, int | None]] = []
    folder = get("toy", tmp_path / "data", progress=lambda *at: seen.append(at), client=serving(TOY))
    assert folder == tmp_path / "data" / "toy"
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "docs/README.txt", "movies.csv", "ratings.csv", "source.json",
    ]  # fmt: skip
    assert read(folder).titles == ["Toy (1995)"]
    assert seen[-1] == (len(TOY), len(TOY))
    record = json.loads((folder / "source.json").read_text())["files"][0]
    assert record == {
        "url": URL,
        "bytes": len(TOY),
        "md5": hashlib.md5(TOY).hexdigest(),
        "sha256": hashlib.sha256(TOY).hexdigest(),
    }
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


def test_a_complete_folder_is_not_fetched_again(tmp_path, listed):
    listed()

    def refuse(_: httpx.Request) -> httpx.Response:
        raise AssertionError("fetched again")

    folder = get("toy", tmp_path, client=serving(TOY))
    assert get("toy", tmp_path, client=httpx.Client(transport=httpx.MockTransport(refuse))) == folder


def test_a_file_without_published_checksum_is_logged_with_its_own(tmp_path, listed, caplog):
    listed(None)
    with caplog.at_level(logging.WARNING):
        get("toy", tmp_path, client=serving(TOY))
    assert f"no published checksum; it came with SHA-256 {hashlib.sha256(TOY).hexdigest()}" in caplog.text


def test_files_that_are_no_archives_are_kept_by_name(tmp_path, listed):
    listed(
        pairs=RemoteFile(url="https://data.example/p.csv", save_as="interactions.csv"),
        titles=RemoteFile(url="https://data.example/t.csv", save_as="items.csv"),
    )
    pages = {"/p.csv": b"user,item,timestamp\n1,2,1583378629552\n", "/t.csv": b"item,title\n2,Two\n"}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=pages[request.url.path]))
    dataset = read(get("toy", tmp_path, client=httpx.Client(transport=transport)))
    assert dataset.titles == ["Two"]
    assert dataset.times.tolist() == [1583378629]


def refused(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("[Errno -2] Name or service not known")


@pytest.mark.parametrize(
    ("client", "says"),
    [
        (httpx.Client(transport=httpx.MockTransport(refused)), "Name or service not known"),
        (serving(b"gone", 404), "404 Not Found"),
        (serving(b"", 500), "500 Internal Server Error"),
    ],
)
def test_without_a_network_the_message_says_what_to_put_where(tmp_path, listed, client, says):
    listed()
    with pytest.raises(DownloadError) as caught:
        get("toy", tmp_path / "data", client=client)
    text = str(caught.value)
    assert says in text
    assert f"cannot download {URL}" in text
    assert f"unpack it to {tmp_path / 'data' / 'toy'}" in text
    assert not list((tmp_path / "data").iterdir())


def test_a_wrong_checksum_keeps_nothing(tmp_path, listed):
    listed("0" * 32)
    with pytest.raises(DownloadError, match=rf"has MD5 {hashlib.md5(TOY).hexdigest()}, not 0{{32}}"):
        get("toy", tmp_path, client=serving(TOY))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt", "C:\\evil.txt", "link"]
)
def test_members_that_leave_the_folder_are_refused(tmp_path, listed, name):
    listed()
    content = archive({"a/fine.txt": "x", name: "/etc/passwd"}, links=("link",))
    with pytest.raises(DownloadError, match="outside its folder or is a link"):
        get("toy", tmp_path / "data", client=serving(content))
    assert [path.name for path in tmp_path.rglob("*")] == ["data"]


@pytest.mark.parametrize("content", [b"no archive", TOY[: len(TOY) // 2], b"", archive({}), BROKEN])
def test_damaged_archives_are_refused(tmp_path, listed, content):
    listed()
    with pytest.raises(DownloadError, match="not a readable zip archive"):
        get("toy", tmp_path, client=serving(content))
    assert not list(tmp_path.iterdir())


def test_a_member_cannot_replace_the_archive_or_the_record(tmp_path, listed):
    listed()
    content = archive({"archive.zip": "x", "source.json": "forged", "a.txt": "y"})
    folder = get("toy", tmp_path, client=serving(content))
    assert json.loads((folder / "source.json").read_text())["files"][0]["bytes"] == len(content)


def test_foreign_files_are_left_alone(tmp_path, listed):
    listed()
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "mine").write_text("x")
    with pytest.raises(StorageError, match="holds files that this command did not write"):
        get("toy", tmp_path, client=serving(TOY))
    with pytest.raises(ConfigError, match=r"unknown data set 'nope'; there are toy"):
        get("nope", tmp_path)


def test_a_full_disk_is_named(tmp_path, listed, monkeypatch):
    listed()
    usage = type("Usage", (), {"free": 3})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"unpacking needs \d+ bytes and the disk has 3"):
        get("toy", tmp_path, client=serving(TOY))


def test_a_real_server_on_the_loopback(tmp_path, listed, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(TOY)))
            self.end_headers()
            half = len(TOY) if self.path == "/whole.zip" else len(TOY) // 2
            self.wfile.write(TOY[:half])

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    try:
        root = f"http://127.0.0.1:{server.server_port}"
        listed(a=RemoteFile(url=f"{root}/cut.zip"))
        with pytest.raises(DownloadError, match="cannot download"):  # the connection ends half way
            get("toy", tmp_path)
        assert not list(tmp_path.iterdir())
        listed(a=RemoteFile(url=f"{root}/whole.zip"))
        assert read(get("toy", tmp_path)).n == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_every_listed_source_is_well_formed():
    for name, source in SOURCES.items():
        assert source.page.startswith("https://"), name
        for file in source.files:
            assert file.url.startswith("https://"), name
            assert file.md5 is None or len(bytes.fromhex(file.md5)) == 16, name
            assert (file.save_as is None) == file.url.endswith(".zip"), name
