"""Downloads from a server on this machine: resumed, refused, unpacked."""

import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from captioning.data.download import COCO_2014, download_coco, fetch, unpack
from captioning.errors import InputError

CONTENT = bytes(range(256)) * 5000


class Handler(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}
    asked: list[str] = []
    cut: int | None = None

    def do_GET(self) -> None:
        content = self.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range", "")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.cut or None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.files, Handler.asked, Handler.cut = {"/f.bin": CONTENT}, [], None
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/"
    running.shutdown()
    running.server_close()


def test_a_file_comes_whole_and_once(server: str, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    path = fetch(server + "f.bin", tmp_path / "new" / "f.bin", lambda *bytes: reported.append(bytes))
    assert path.read_bytes() == CONTENT and reported[-1] == (len(CONTENT), len(CONTENT))
    fetch(server + "f.bin", path)
    assert len(Handler.asked) == 1


def test_an_interrupted_download_continues_where_it_stopped(server: str, tmp_path: Path) -> None:
    Handler.cut = 1000
    with pytest.raises(InputError, match="run the command again"):
        fetch(server + "f.bin", tmp_path / "f.bin")
    assert not (tmp_path / "f.bin").exists() and (tmp_path / "f.bin.partial").stat().st_size == 1000
    Handler.cut = None
    assert fetch(server + "f.bin", tmp_path / "f.bin").read_bytes() == CONTENT
    assert Handler.asked[-1] == "bytes=1000-"


def test_a_partial_file_that_is_complete_gets_its_name(server: str, tmp_path: Path) -> None:
    (tmp_path / "f.bin.partial").write_bytes(CONTENT)
    assert fetch(server + "f.bin", tmp_path / "f.bin").read_bytes() == CONTENT


def test_a_refusal_and_a_dead_server_are_reported(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="answered 404"):
        fetch(server + "none", tmp_path / "f.bin")
    with pytest.raises(InputError, match="could not be downloaded"):
        fetch("http://127.0.0.1:9/f.bin", tmp_path / "f.bin")
    assert not list(tmp_path.iterdir())


def zipped(folder: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{folder}/one.txt", folder)
    return buffer.getvalue()


def test_coco_is_fetched_unpacked_and_left_alone_the_second_time(server: str, tmp_path: Path) -> None:
    Handler.files = {f"/{archive}": zipped(member) for archive, member in COCO_2014.items()}
    folders = download_coco(tmp_path / "coco", server)
    assert [(folder / "one.txt").read_text() for folder in folders] == list(COCO_2014.values())
    download_coco(tmp_path / "coco", server)
    assert len(Handler.asked) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped("a")[:-30], "a.zip is a damaged ZIP file"),
        (zipped("a").replace(b"a", b"b", 3), "a.zip is a damaged ZIP file"),
        (zipped("b"), "a.zip holds no folder 'a'"),
    ],
)
def test_a_damaged_archive_leaves_nothing_behind(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=message):
        unpack(tmp_path / "a.zip", tmp_path, "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]
