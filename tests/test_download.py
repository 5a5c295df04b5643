"""Downloads from servers on this machine that break off, lie and repeat themselves: resumed or refused."""

import errno
import hashlib
import http.server
import io
import socket
import threading
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from captioning.data import download
from captioning.data.download import COCO_2014, Archive, download_coco, fetch, unpack
from captioning.errors import InputError

PAGE = b"<html><body>Please log in</body></html>"


def zipped(folder: str, size: int = 200_000) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{folder}/one.bin", bytes(range(251)) * (size // 251))
        archive.writestr(f"{folder}/one.txt", folder)
    return buffer.getvalue()


FILE = zipped("f")
PUBLISHED = {"size": len(FILE), "sha256": hashlib.sha256(FILE).hexdigest()}


class Server(http.server.BaseHTTPRequestHandler):
    """Sends `FILE`; `answers` are the ways in which the first requests are answered otherwise."""

    answers: list[Callable[["Server", int], None]] = []
    asked: list[str] = []
    files: dict[str, bytes] = {}

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.asked.append(wanted)
        if self.path not in self.files:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if self.answers:
            self.answers.pop(0)(self, start)
        else:
            self.answer(start, self.files[self.path][start:])

    def answer(self, start: int, content: bytes, claims: int | None = None, **headers: str) -> None:
        self.send_response(206 if start else 200)
        if start:
            end = start + len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(self.files[self.path])}")
        self.send_header("Content-Length", str(claims or len(content)))
        self.headers_and(content, **headers)

    def headers_and(self, content: bytes, **headers: str) -> None:
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Server.answers, Server.asked, Server.files = [], [], {"/f.zip": FILE}
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/"
    running.shutdown()
    running.server_close()


# --- what a server may do, and the file comes whole all the same ---


def cut_with_length(server: Server, start: int) -> None:
    server.answer(start, FILE[start : start + 90_000], claims=len(FILE) - start)


def cut_without_length(server: Server, start: int) -> None:
    server.send_response(206 if start else 200)
    if start:
        server.send_header("Content-Range", f"bytes {start}-{len(FILE) - 1}/{len(FILE)}")
    server.headers_and(FILE[start : start + 90_000])


def cut_in_a_chunk(server: Server, start: int) -> None:
    server.send_response(200)
    server.headers_and(b"ea60\r\n" + FILE[:30_000], Transfer_Encoding="chunked")


def whole_in_chunks(server: Server, start: int) -> None:
    server.send_response(200)
    server.headers_and(b"%x\r\n%b\r\n0\r\n\r\n" % (len(FILE), FILE), Transfer_Encoding="chunked")


def another_part(server: Server, start: int) -> None:
    """A proxy that holds the file from byte 7 on, whatever is asked."""
    server.send_response(206)
    part = FILE[7:]
    server.headers_and(part, Content_Range=f"bytes 7-{len(FILE) - 1}/*", Content_Length=str(len(part)))


def part_without_extent(server: Server, start: int) -> None:
    server.send_response(206)
    server.headers_and(FILE[7:], Content_Length=str(len(FILE) - 7))


def no_parts(server: Server, start: int) -> None:
    server.send_error(416)


def whole(server: Server, start: int) -> None:
    server.answer(0, FILE)


def more_than_it_is(server: Server, start: int) -> None:
    server.send_response(200)
    server.headers_and(FILE + b"and more")


@pytest.mark.parametrize(
    "answers",
    [
        [],
        [cut_with_length, cut_with_length],
        [cut_without_length, cut_without_length],
        [cut_in_a_chunk],
        [cut_in_a_chunk, whole_in_chunks],
        [cut_with_length, another_part],
        [cut_with_length, part_without_extent],
        [cut_with_length, no_parts],
        [cut_with_length, whole],
        [cut_with_length, another_part, cut_with_length],
        [more_than_it_is],
    ],
)
def test_whatever_breaks_on_the_way_the_published_file_arrives(
    server: str, tmp_path: Path, answers: list[Callable[[Server, int], None]]
) -> None:
    Server.answers = list(answers)
    target = tmp_path / "new" / "f.zip"
    while Server.answers:  # a run may end with the remedy "run it again"
        try:
            fetch(server + "f.zip", target, **PUBLISHED)
        except InputError as error:
            assert "Run the command again to continue" in str(error) and not target.exists()
    assert fetch(server + "f.zip", target, **PUBLISHED).read_bytes() == FILE
    assert not target.with_name("f.zip.partial").exists()


def test_a_broken_connection_is_taken_up_where_it_ended(server: str, tmp_path: Path) -> None:
    Server.answers = [cut_without_length, cut_with_length]
    reported: list[tuple[int, int]] = []
    fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED, on_progress=lambda *b: reported.append(b))
    assert Server.asked == ["", "bytes=90000-", "bytes=180000-"]
    assert reported[-1] == (len(FILE), len(FILE))


def test_what_is_there_is_left_alone(server: str, tmp_path: Path) -> None:
    (tmp_path / "f.zip").write_bytes(FILE)
    fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED)
    assert not Server.asked


def test_a_partial_file_that_is_complete_gets_its_name(server: str, tmp_path: Path) -> None:
    (tmp_path / "f.zip.partial").write_bytes(FILE)
    assert fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED).read_bytes() == FILE and not Server.asked


def test_a_partial_file_that_is_too_long_is_begun_anew(server: str, tmp_path: Path) -> None:
    (tmp_path / "f.zip.partial").write_bytes(FILE + b"x")
    assert fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED).read_bytes() == FILE


# --- what is never accepted ---


def page_with_length(server: Server, start: int) -> None:
    server.answer(0, PAGE, Content_Type="text/html")


def page_without_length(server: Server, start: int) -> None:
    server.send_response(200)
    server.headers_and(PAGE, Content_Type="text/html")


def other_file(server: Server, start: int) -> None:
    server.answer(0, FILE[:-1])


def damaged(server: Server, start: int) -> None:
    server.answer(0, FILE[:5000] + bytes([FILE[5000] ^ 1]) + FILE[5001:])


@pytest.mark.parametrize("before", [b"", FILE[:90_000]])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (page_with_length, "the server sends 39 bytes of text/html.*login page"),
        (page_without_length, "the server sends no ZIP file but text/html that begins with b'<html>"),
        (other_file, f"the server sends {len(FILE) - 1:,} bytes"),
    ],
)
def test_a_page_in_place_of_the_file_is_refused_and_costs_nothing(
    server: str, tmp_path: Path, answer: Callable[[Server, int], None], message: str, before: bytes
) -> None:
    Server.answers = [answer]
    partial = tmp_path / "f.zip.partial"
    partial.write_bytes(before)
    with pytest.raises(InputError, match=message):
        fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED)
    assert partial.read_bytes() == before and not (tmp_path / "f.zip").exists()


def test_a_file_damaged_on_its_way_is_deleted(server: str, tmp_path: Path) -> None:
    Server.answers = [damaged]
    with pytest.raises(InputError, match="came with the SHA-256 .* run the command again"):
        fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED)
    assert fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED).read_bytes() == FILE


def test_a_file_of_another_size_under_the_final_name_is_refused(server: str, tmp_path: Path) -> None:
    (tmp_path / "f.zip").write_bytes(PAGE)
    with pytest.raises(InputError, match=r"f.zip has 39 bytes, the published file has .*; delete it"):
        fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED)


def test_a_server_that_never_sends_the_beginning_is_given_up(server: str, tmp_path: Path) -> None:
    Server.answers = [another_part, another_part]
    with pytest.raises(InputError, match="the server sends the bytes from 7 on, asked were all"):
        fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED)


def test_a_refusal_and_a_dead_server_are_reported(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="answered 404"):
        fetch(server + "none.zip", tmp_path / "f.zip", **PUBLISHED)
    for url in ("http://127.0.0.1:9/f.zip", "no url"):
        with pytest.raises(InputError, match="could not be downloaded .* 0 of"):
            fetch(url, tmp_path / "f.zip", **PUBLISHED)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_server_that_speaks_no_http_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")
            connection.close()

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(InputError, match="could not be downloaded"):
            fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/f.zip", tmp_path / "f.zip", **PUBLISHED)


def test_two_downloads_of_one_file_do_not_meet(server: str, tmp_path: Path) -> None:
    Server.files = {f"/{n}.zip": FILE for n in "abcdefgh"}
    outcomes: list[str] = []

    def one(name: str) -> None:
        try:
            outcomes.append(str(fetch(server + name, tmp_path / name, **PUBLISHED)))
        except InputError as error:
            assert "another process is making" in str(error)
            outcomes.append("refused")

    for letter in "abcdefgh":
        threads = [threading.Thread(target=one, args=(f"{letter}.zip",)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (tmp_path / f"{letter}.zip").read_bytes() == FILE
    assert len(outcomes) == 16
    with (
        FileLock(tmp_path / "i.zip.partial.lock"),
        pytest.raises(InputError, match="another process is making .*i.zip; wait"),
    ):
        fetch(server + "f.zip", tmp_path / "i.zip", **PUBLISHED)


def test_a_disk_that_is_too_small_is_noticed_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage(1000))
    with pytest.raises(InputError, match=r"f.zip needs 0.00 GB more, but .* has 0.00 GB free; make room"):
        fetch("http://127.0.0.1:9/f.zip", tmp_path / "f.zip", **PUBLISHED)
    (tmp_path / "f.zip").write_bytes(FILE)
    with pytest.raises(InputError, match="needs 0.00 GB more"):
        unpack(tmp_path / "f.zip", tmp_path, "f")
    assert not (tmp_path / "f").exists()


def test_a_full_disk_is_no_fault_of_server_or_archive(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "f.zip.partial").write_bytes(FILE[:90_000])
    monkeypatch.setattr(download, "_write", fill)
    with pytest.raises(OSError, match="No space left"):
        fetch(server + "f.zip", tmp_path / "f.zip", **PUBLISHED)
    assert (tmp_path / "f.zip.partial").read_bytes() == FILE[:90_000]
    (tmp_path / "f.zip").write_bytes(FILE)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", fill)
    with pytest.raises(OSError, match="No space left"):
        unpack(tmp_path / "f.zip", tmp_path, "f")
    assert not (tmp_path / "f").exists() and not (tmp_path / "f.partial").exists()


# --- archives ---


def test_coco_is_fetched_unpacked_and_left_alone_the_second_time(server: str, tmp_path: Path) -> None:
    Server.files = {f"/{name}": zipped(archive.folder) for name, archive in COCO_2014.items()}
    archives = {
        name: Archive(
            archive.folder, len(content := Server.files[f"/{name}"]), hashlib.sha256(content).hexdigest()
        )
        for name, archive in COCO_2014.items()
    }
    folders = download_coco(tmp_path / "coco", server, archives=archives)
    names = [archive.folder for archive in COCO_2014.values()]
    assert [(folder / "one.txt").read_text() for folder in folders] == names
    download_coco(tmp_path / "coco", server, archives=archives)
    assert len(Server.asked) == 3


def test_every_published_file_has_a_size_and_a_checksum() -> None:
    for archive in COCO_2014.values():
        assert archive.size > 1e8 and len(bytes.fromhex(archive.sha256)) == 32


def encrypted(content: bytes) -> bytes:
    """The same archive with the flag of encryption in every header."""
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        parts = content.split(signature)
        flagged = [
            bytes([*part[: offset - 4], part[offset - 4] | 1, *part[offset - 3 :]]) for part in parts[1:]
        ]
        content = signature.join([parts[0], *flagged])
    return content


def other_method(content: bytes) -> bytes:
    return content.replace(b"PK\x03\x04\x14\0\0\0\0\0", b"PK\x03\x04\x14\0\0\0\x63\0").replace(
        b"PK\x01\x02\x14\x03\x14\0\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x63\0"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped("a")[:-30], "a.zip is a damaged ZIP file"),
        (zipped("a").replace(b"a", b"b", 3), "a.zip is a damaged ZIP file"),
        (zipped("a")[:5000] + b"?" + zipped("a")[5001:], "a.zip is a damaged ZIP file .*CRC"),
        (encrypted(zipped("a")), "a.zip is a damaged ZIP file .*encrypted"),
        (other_method(zipped("a")), "a.zip is a damaged ZIP file .*compression"),
        (PAGE, "a.zip is a damaged ZIP file"),
        (b"", "a.zip is a damaged ZIP file"),
        (zipped("b"), "a.zip holds no folder 'a'"),
    ],
)
def test_a_damaged_archive_leaves_nothing_behind(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(InputError, match=message):
        unpack(tmp_path / "a.zip", tmp_path, "a")
    assert {p.name for p in tmp_path.iterdir()} == {"a.zip", "a.partial.lock"}


@pytest.mark.parametrize("seed", range(60))
def test_no_flipped_byte_unpacks_to_something_else(tmp_path: Path, seed: int) -> None:
    content = bytearray(zipped("a", 3000))
    content[seed * 7919 % len(content) if seed % 2 else -1 - seed * 3] ^= 1 << seed % 8
    (tmp_path / "a.zip").write_bytes(content)
    try:
        folder = unpack(tmp_path / "a.zip", tmp_path, "a")
    except InputError:
        assert not (tmp_path / "a").exists()
    else:
        found = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
        assert found in (bytes(range(251)) * 11 + b"a", bytes(range(251)) * 11, b"a")


def test_entries_outside_the_folder_are_not_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a/one.txt", "../out.txt", "/tmp/out.txt", "other/two.txt", "a/../../out.txt"):
            archive.writestr(name, "content")
    unpack(tmp_path / "a.zip", tmp_path / ".", "a")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.zip", "a.partial.lock"}
    assert not (tmp_path.parent / "out.txt").exists()


def test_a_killed_unpacking_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped("a"))
    (tmp_path / "a.partial" / "a").mkdir(parents=True)
    (tmp_path / "a.partial" / "a" / "half.bin").write_bytes(b"half")
    folder = unpack(tmp_path / "a.zip", tmp_path, "a")
    assert sorted(path.name for path in folder.iterdir()) == ["one.bin", "one.txt"]
