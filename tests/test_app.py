"""The page of `captioning app`: its answers, its limits, its gate; and the page itself in a browser."""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import os
import re
import secrets
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captioning.app import check_gradio, check_limits, describe_address, listen
from captioning.errors import InputError
from captioning.features import Backbone
from captioning.models import FeatureProjection, GRUAttention, MeanPooled, RawFeatures, ResetState
from captioning.page import BusyError, Gate, Page, Uploads, join_body
from captioning.predictor import Predictor
from captioning.tokenizers import Characters
from captioning.vocabulary import SPECIAL_WORDS, Vocabulary

ROOT = Path(__file__).parents[1]
WORDS = ["a", "dog", "grass", "on", "red", "cat"]
DECODERS = {"default": "Most likely", "diverse_beam": "Three", "nucleus": "By chance", "greedy": None}
JOIN, EVENTS = "/gradio/gradio_api/queue/join", "/gradio/gradio_api/queue/data"


def captioner_of(backbone: Backbone, *, attention: bool = True) -> Predictor:
    torch.manual_seed(0)
    sizes = {"vocabulary_size": len(WORDS) + 4, "embedding_dim": 8, "hidden_dim": 8, "dropout": 0.0}
    if attention:
        encoder = FeatureProjection(feature_dim=backbone.feature_dim, output_dim=8, dropout=0.0)
        parts = {"attention_dim": 8, "activation": torch.nn.Tanh(), "recurrence": ResetState()}
        model = GRUAttention(encoder=encoder, **sizes, **parts).eval()
    else:
        model = MeanPooled(encoder=RawFeatures(feature_dim=backbone.feature_dim), **sizes).eval()
    model.init_output_bias(torch.tensor([0, 0, 60, 0, *[100] * len(WORDS)]))  # captions that are not empty
    vocabulary = Vocabulary([*SPECIAL_WORDS, *WORDS])
    return Predictor(model=model, vocabulary=vocabulary, extractor=backbone, decoding="beam")


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    (tmp_path / "uploads").mkdir()
    return Uploads(tmp_path / "uploads", max_bytes=2_000_000, max_files=3)


@pytest.fixture
def page(backbone: Backbone, uploads: Uploads) -> Page:
    return Page(captioner_of(backbone), uploads, decoders=DECODERS, max_pixels=10_000)


def photograph(width: int = 60, height: int = 40, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def bomb(side: int, rows: int | None = None) -> bytes:
    """A small PNG of `side` times `side` black pixels, or that says so and has fewer rows."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    packer = zlib.compressobj(9)
    content = (
        b"".join(packer.compress(bytes(1 + side)) for _ in range(side if rows is None else rows))
        + packer.flush()
    )
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


async def chunks_of(content: bytes, wait: float = 0.0) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        await asyncio.sleep(wait)
        yield content[start : start + 1000]


def store(uploads: Uploads, content: bytes, wait: float = 0.0) -> str:
    return asyncio.run(uploads.store(chunks_of(content, wait)))


def ask(page: Page, content: bytes, decoder: str = "default", required: str = "", wording: str = "") -> dict:
    answer = page.caption(store(page.uploads, content), decoder, required, wording)
    assert not list(page.uploads.folder.iterdir()), "an upload stays"
    return answer


# ---- captions ----


def test_a_photograph_becomes_a_caption_whose_words_have_places(page: Page) -> None:
    answer = ask(page, photograph())
    assert answer["text"].split() == answer["words"] and 0 < answer["score"] <= 1
    assert answer["joined"] == [False] * len(answer["words"])
    assert len(answer["alternatives"]) == 2
    assert len(answer["shades"]) == len(answer["places"]) == len(answer["words"]) > 0
    assert all(place.startswith("looked at the ") for place in answer["places"])
    shade = Image.open(io.BytesIO(base64.b64decode(answer["shades"][0].partition(",")[2])))
    opacity = np.asarray(shade)[..., 3]
    assert (
        shade.mode == "RGBA" and opacity.min() == 40 and opacity.max() > 150
    )  # light where the model looked
    assert answer["preview"].startswith("data:image/jpeg;base64,")
    json.dumps(answer)


def test_the_page_says_what_the_captioner_says(page: Page) -> None:
    expected = page.captioner(photograph(), decoding="beam", num_best=3)
    answer = ask(page, photograph())
    assert answer["text"] == expected.text
    assert [other["text"] for other in answer["alternatives"]] == [text for text, _ in expected.alternatives]
    assert answer["score"] == pytest.approx(np.exp(expected.log_prob / (len(expected.words) + 1)))


def test_an_alternative_that_is_chosen_is_followed_word_by_word(page: Page) -> None:
    for other in ask(page, photograph())["alternatives"]:
        answer = ask(page, photograph(), wording=other["text"])
        assert answer["words"] == other["text"].split() and answer["text"] == other["text"]
        assert len(answer["shades"]) == len(answer["words"])


def test_characters_are_joined_and_counted_and_followed_one_by_one(page: Page) -> None:
    vocabulary = Vocabulary([*SPECIAL_WORDS, *"一只狗在绿草地上跑猫人水"[: len(WORDS)]], Characters())
    assert len(vocabulary) == len(page.captioner.vocabulary)
    captioner = page.captioner
    captioner.vocabulary = vocabulary
    answer = ask(page, photograph())
    assert answer["text"] == "".join(answer["words"]) and answer["joined"][1:] == [True] * (
        len(answer["words"]) - 1
    )
    expected = captioner(photograph(), decoding="beam", num_best=3)
    assert answer["score"] == pytest.approx(np.exp(expected.log_prob / (len(expected.words) + 1)))
    other = answer["alternatives"][0]["text"]
    assert "".join(ask(page, photograph(), wording=other)["words"]) == other
    assert "狗" in ask(page, photograph(), required="狗")["text"]
    assert "does not know the word" in ask(page, photograph(), required="鱼")["error"]


@pytest.mark.parametrize("decoder", ["default", "diverse_beam"])
def test_required_words_are_in_the_caption(page: Page, decoder: str) -> None:
    answer = ask(page, photograph(), decoder, required="Grass, cat!")
    assert {"grass", "cat"} <= set(answer["words"])


def test_a_model_without_attention_has_words_alone(backbone: Backbone, uploads: Uploads) -> None:
    captioner = captioner_of(backbone, attention=False)
    answer = ask(Page(captioner, uploads, decoders=DECODERS, max_pixels=10_000), photograph())
    assert answer["shades"] is None and answer["places"] == [] and answer["words"]


def test_a_captioners_own_decoder_is_used_if_it_gives_several_captions(
    backbone: Backbone, uploads: Uploads
) -> None:
    captioner = captioner_of(backbone)
    short = {"_target_": "captioning.decoding.beam_search", "_partial_": True, "max_words": 2}
    for own, longest in (({**short, "beam_size": 2, "num_best": 1, "required": []}, 2), ("greedy", 20)):
        captioner = Predictor(
            model=captioner.model, vocabulary=captioner.vocabulary, extractor=backbone, decoding=own
        )
        page = Page(captioner, uploads, decoders=DECODERS, max_pixels=10_000)
        answer = ask(page, photograph())
        assert answer["alternatives"] and len(answer["words"]) <= longest


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"not a picture", {}, "this file is not a picture; needed is a JPEG, PNG or WebP"),
        (b"%PDF-1.4 ...", {}, "this file is a PDF document; "),
        (b"\0\0\0\x18ftypmp42....", {}, "this file is a video; "),
        (photograph()[:-700], {}, "the photograph is damaged: not all of it can be read"),
        (
            photograph(400, 300, "PNG"),
            {},
            "the photograph has more than 0.01 million pixels; make it smaller",
        ),
        # These are not decoded, or they would be found to be damaged; Pillow itself does not open the second.
        (bomb(1000, rows=1), {}, "the photograph has more than 0.01 million pixels; make it smaller"),
        (bomb(60_000, rows=1), {}, "the photograph has more than 0.01 million pixels; make it smaller"),
        (
            photograph(),
            {"decoder": "greedy"},
            "there is no decoder 'greedy' here; there are default, diverse",
        ),
        (photograph(), {"required": "graas"}, "the model does not know the word “graas”; did you mean grass"),
        (photograph(), {"required": "zzz"}, "the model does not know the word “zzz”"),
        (photograph(), {"required": "a dog grass on red cat a a"}, "required"),
        (photograph(), {"wording": "a unicorn"}, "do not include 'unicorn'"),
    ],
)
def test_a_mistake_is_answered_with_a_sentence(
    page: Page, content: bytes, options: dict[str, str], message: str
) -> None:
    answer = ask(page, content, **options)
    assert list(answer) == ["error"] and message in answer["error"]
    assert str(page.uploads.folder) not in answer["error"]


def test_damaged_metadata_costs_no_photograph(page: Page) -> None:
    file = io.BytesIO()
    Image.open(io.BytesIO(photograph())).save(file, "JPEG", exif=b"Exif\0\0II*\0")
    assert ask(page, file.getvalue())["words"]


def test_only_tokens_that_were_given_out_are_read(page: Page) -> None:
    (page.uploads.folder.parent / "secret.jpg").write_bytes(photograph())
    for token in ("0" * 32, "../secret.jpg", "/etc/passwd", ""):
        assert page.caption(token, "default", "", "") == {
            "error": "the photograph is no longer here; send it again"
        }


def test_a_page_without_decoders_is_refused(backbone: Backbone, uploads: Uploads) -> None:
    with pytest.raises(InputError, match="decoders is empty; the page needs one, such as decoders.default="):
        Page(captioner_of(backbone), uploads, decoders={"beam": None}, max_pixels=1)
    with pytest.raises(InputError, match="there is no decoding 'bean'"):
        Page(captioner_of(backbone), uploads, decoders={"bean": "Best"}, max_pixels=1)


# ---- limits ----


def test_uploads_are_bounded_in_size_number_and_time(uploads: Uploads) -> None:
    with pytest.raises(InputError, match="the file is larger than 2 MB; send a smaller photograph"):
        store(uploads, bytes(2_000_001))
    with pytest.raises(InputError, match=r"the file is empty \(0 bytes\)"):
        store(uploads, b"")
    slow = Uploads(uploads.folder, max_bytes=10_000, max_files=1, max_seconds=0.1)
    with pytest.raises(
        InputError, match=r"the photograph did not arrive within 0\.1 seconds; send a smaller"
    ):
        store(slow, bytes(5000), wait=0.05)
    assert not list(uploads.folder.iterdir())
    tokens = [store(uploads, b"x") for _ in range(3)]
    with pytest.raises(BusyError, match="too many photographs are waiting; try again in a minute"):
        store(uploads, b"x")
    uploads.remove(tokens[0])
    store(uploads, b"x")
    assert len(list(uploads.folder.iterdir())) == 3


def test_an_upload_that_nobody_captions_makes_room(uploads: Uploads) -> None:
    uploads = Uploads(uploads.folder, max_bytes=10, max_files=1, max_waiting=0.05)
    store(uploads, b"x")
    time.sleep(0.1)
    store(uploads, b"y")
    assert [path.read_bytes() for path in uploads.folder.iterdir()] == [b"y"]


def test_an_upload_whose_connection_closes_is_removed(uploads: Uploads) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 10
        raise ConnectionError

    for _ in range(5):
        with pytest.raises(ConnectionError):
            asyncio.run(uploads.store(broken()))
    assert not list(uploads.folder.iterdir()) and store(uploads, b"x")


# ---- the gate ----


async def echo(scope: dict, receive: Callable, send: Callable) -> None:
    body = (await receive()).get("body", b"") if scope["method"] == "POST" else b""
    headers = [(b"cache-control", b"public"), (b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def through(gate: Gate, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, dict]:
    sent = [{"type": "http.request", "body": body[i : i + 5000]} for i in range(0, len(body) or 1, 5000)]
    messages = [{**message, "more_body": message is not sent[-1]} for message in sent]
    answers: list[dict] = []

    async def receive() -> dict:
        return messages.pop(0)

    async def send(message: dict) -> None:
        answers.append(message)

    names = {"host": "localhost:7860", **headers}
    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in names.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": encoded}
    asyncio.run(gate(scope, receive, send))
    return answers[0]["status"], answers[1]["body"], dict(answers[0]["headers"])


@pytest.fixture
def gate() -> Gate:
    routes = {("GET", "/"), ("POST", "/photograph"), ("POST", "/join")}
    return Gate(echo, routes=routes, rewrite={"/join": join_body}, hosts=("localhost", "::1"))


def test_what_the_page_asks_for_is_let_through(gate: Gate) -> None:
    status, _, headers = through(gate, "GET", "/")
    assert status == 200 and headers[b"cache-control"] == b"no-store"
    assert b"default-src 'none'" in headers[b"content-security-policy"]
    assert through(gate, "GET", "/", host="[::1]:80")[0] == 200
    assert through(gate, "POST", "/photograph", bytes(30_000), sec_fetch_site="same-origin")[0] == 200
    asked = {"data": ["t", "beam", "", ""], "session_hash": "abcdef12", "fn_index": 7, "event_data": "x"}
    status, body, _ = through(gate, "POST", "/join", json.dumps(asked).encode())
    assert status == 200
    assert json.loads(body) == {"data": ["t", "beam", "", ""], "session_hash": "abcdef12", "fn_index": 0}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "text"),
    [
        ("GET", "/gradio/config", {}, 404, "there is nothing here"),
        ("GET", "/gradio/gradio_api/file=/etc/passwd", {}, 404, "there is nothing here"),
        ("HEAD", "/join", {}, 404, "there is nothing here"),
        ("GET", "/", {"host": "evil.example"}, 403, "this server answers only to localhost, ::1"),
        ("POST", "/photograph", {"sec_fetch_site": "cross-site"}, 403, "requests of other sites are refused"),
    ],
)
def test_everything_else_is_refused(
    gate: Gate, method: str, path: str, headers: dict[str, str], status: int, text: str
) -> None:
    found, body, _ = through(gate, method, path, **headers)
    assert (found, body.decode()) == (status, text)


FILE = {"path": "/etc/passwd", "url": "http://127.0.0.1/", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize(
    "asked",
    [
        {"data": [FILE, "beam", "", ""], "session_hash": "abcdef12"},
        {"data": ["t", "beam", "", ["x"]], "session_hash": "abcdef12"},
        {"data": ["t", "beam", ""], "session_hash": "abcdef12"},
        {"data": FILE, "session_hash": "abcdef12"},
        {"data": ["t", "beam", "", ""], "session_hash": "../x"},
        {"data": ["t", "beam", "", ""]},
        {"data": ["x" * 20_000, "beam", "", ""], "session_hash": "abcdef12"},
        ["data"],
        None,
    ],
)
def test_a_request_to_the_queue_names_no_file_and_no_url(gate: Gate, asked: object) -> None:
    status, body, _ = through(gate, "POST", "/join", json.dumps(asked).encode())
    assert (status, body) == (400, b"this is not a request of the page")
    assert through(gate, "POST", "/join", b"\xff[[[[")[0] == 400


def test_the_page_names_nothing_outside(page: Page) -> None:
    texts = [
        page.html(local=True),
        *(path.read_text() for path in page.files.values() if path.suffix != ".jpg"),
    ]
    for text in texts:
        assert set(re.findall(r"(?:https?:)?//[\w.]+", text)) <= {"http://www.w3.org"}  # an SVG's namespace
        assert "@import" not in text


def test_settings_cannot_end_their_element(backbone: Backbone, uploads: Uploads) -> None:
    page = Page(captioner_of(backbone), uploads, decoders={"beam": "</script><b>"}, max_pixels=1)
    text = page.html(local=False)
    settings = re.search(r'id="settings">(.*)</script>', text)
    assert settings and "</script><b>" not in text
    assert json.loads(settings[1])["decoders"][0]["label"] == "</script><b>"


# ---- the command ----


def test_gradio_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"the page needs gradio, .* pip install 'captioning\[app\]'"):
        check_gradio()


def test_a_port_that_is_taken_is_refused_before_anything_slow() -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        for host, wanted in (
            ("127.0.0.1", port),
            ("192.0.2.1", 0),
            ("no such host", 0),
            ("127.0.0.1", 70_000),
            ("127.0.0.1", "x"),
        ):
            with pytest.raises(InputError, match=f"host={host} port={wanted} can't be listened to"):
                listen(host, wanted).close()


@pytest.mark.parametrize("value", [0, -1, "many", None, True, float("nan"), float("inf")])
def test_limits_are_numbers(value: object) -> None:
    limits = {"max_megabytes": 1, "max_megapixels": 0.5, "max_waiting": 3}
    check_limits(limits)
    for name in limits:
        with pytest.raises(InputError, match=f"{name}={value} must be a number above 0"):
            check_limits({**limits, name: value})


def test_the_address_can_be_typed() -> None:
    assert describe_address("127.0.0.1", 80) == "http://127.0.0.1:80/"
    assert describe_address("::1", 80) == "http://[::1]:80/"
    assert describe_address("0.0.0.0", 80).startswith("http://127.0.0.1:80/, for others at http://")


class Server:
    """A page that runs in a process of its own."""

    def __init__(self, process: subprocess.Popen, port: int, folder: Path) -> None:
        self.process, self.port, self.folder = process, port, folder
        self.url = f"http://127.0.0.1:{port}/"

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        ) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()

    def caption(self, content: bytes) -> dict[str, Any]:
        status, reply = self.request("POST", "/photograph", content)
        if status != 200:
            return {"status": status, **json.loads(reply)}
        session = secrets.token_hex(8)
        data = [json.loads(reply)["token"], "default", "", ""]
        status, reply = self.request(
            "POST", JOIN, json.dumps({"data": data, "session_hash": session}).encode()
        )
        assert status == 200, reply
        _, events = self.request("GET", f"{EVENTS}?session_hash={session}")
        messages = [json.loads(line[5:]) for line in events.splitlines() if line.startswith(b"data:")]
        [done] = [message for message in messages if message["msg"] == "process_completed"]
        return done["output"]["data"][0]

    def peak(self) -> int:
        """Largest resident memory so far, in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) // 1024


@pytest.fixture(scope="module")
def server(toy_overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio")
    from captioning.training import assemble
    from tests.conftest import compose_config

    folder = tmp_path_factory.mktemp("app")
    (folder / "tmp").mkdir()
    assemble(compose_config("train", *toy_overrides, f"output_dir={folder / 'run'}")).fit()
    line = [
        sys.executable,
        "-m",
        "captioning.app",
        f"checkpoint={folder / 'run'}",
        "port=0",
        "max_megapixels=20",
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(folder / "tmp"),
    }
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment) as process:
        text = process.stdout.readline()
        assert (found := re.search(r"the page is at http://127\.0\.0\.1:(\d+)/ \(Ctrl-C stops it\)", text)), (
            text
        )
        yield Server(process, int(found[1]), folder)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert not list((folder / "tmp").glob("captioning-*")), "the temporary folder stays"
    assert sorted(path.name for path in folder.iterdir()) == ["run", "tmp"]


@pytest.mark.slow
def test_fifty_clients_and_bombs_are_served_in_bounded_memory(server: Server) -> None:
    server.caption(photograph())
    before = server.peak()
    content = photograph(1200, 900)
    with ThreadPoolExecutor(50) as clients:
        answers = list(clients.map(server.caption, [content] * 50))
    assert {answer.get("text") for answer in answers} == {answers[0]["text"]} and answers[0]["words"]
    with ThreadPoolExecutor(50) as clients:
        refused = list(clients.map(server.caption, [bomb(10_000)] * 50))
    assert all("more than 20 million pixels" in answer["error"] for answer in refused)
    assert server.caption(bomb(4400))["words"]
    # A picture of 20 million pixels takes 60 MB, and several copies of one are alive while it is read.
    assert server.peak() - before < 500
    [folder] = (server.folder / "tmp").glob("captioning-*")
    assert not [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_running_server_lets_only_the_page_in(server: Server) -> None:
    for path in ("gradio/", "gradio/config", "gradio/gradio_api/info", "docs", "examples/../page.js"):
        assert server.request("GET", f"/{path}")[0] == 404
    file = json.dumps({"data": [FILE, "default", "", ""], "session_hash": "abcdef12"}).encode()
    assert server.request("POST", JOIN, file) == (400, b"this is not a request of the page")
    assert server.caption(b"") == {"status": 400, "error": "the file is empty (0 bytes)"}
    assert server.request("GET", "/page.js")[0] == 200


# ---- in a browser ----


class Browser:
    """Chromium on the page, with what a user does."""

    def __init__(self, url: str, *arguments: str, mobile: dict[str, Any] | None = None) -> None:
        webdriver = pytest.importorskip("selenium.webdriver")
        chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if not (chromium and driver):
            pytest.skip("chromium and chromium-driver are not installed")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", *arguments):
            options.add_argument(f"--{argument}")
        if mobile:
            options.add_experimental_option("mobileEmulation", {"deviceMetrics": mobile})
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.url = url
        self.load()

    def load(self) -> None:
        """Load the page anew, and wait until it is there: what is sent to the document of before is lost."""
        self.script("window.before = true")
        self.driver.get(self.url)
        self.wait(lambda: self.script("return !window.before && document.readyState === 'complete'"))

    def __getitem__(self, name: str) -> Any:
        return self.driver.find_element("id", name)

    def script(self, text: str, *arguments: object) -> Any:
        return self.driver.execute_script(text, *arguments)

    def wait(self, condition: Callable[[], Any]) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        # The page replaces words while they are read; then they are looked for again.
        ready = WebDriverWait(self.driver, 120, 0.05, ignored_exceptions=[StaleElementReferenceException])
        ready.until(lambda driver: condition())

    def answered(self) -> None:
        self.wait(
            lambda: self["answer"].is_displayed() and self["result"].get_attribute("aria-busy") == "false"
        )

    def words(self) -> list[Any]:
        return self["words"].find_elements("tag name", "button")

    def lit(self) -> list[str]:
        return [word.text for word in self["words"].find_elements("css selector", ".lit")]

    def keys(self, *keys: str) -> Any:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        return self.driver.switch_to.active_element

    def hand_over(self, event: str, kind: str, content: str, name: str = "x") -> None:
        """Drop or paste a file of base64, or a text."""
        self.script(
            """const [event, kind, content, name] = arguments, data = new DataTransfer();
            if (kind.startsWith("image/")) {
              const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt());
              data.items.add(new File([bytes], name, {type: kind}));
            } else data.setData(kind, content);
            const made = event === "drop" ? new DragEvent("drop", {dataTransfer: data, bubbles: true})
                                          : new ClipboardEvent("paste", {clipboardData: data, bubbles: true});
            document.body.dispatchEvent(made);""",
            event, kind, content, name,
        )  # fmt: skip

    def requested(self) -> set[str]:
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [entry["params"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]
        return {params["request"]["url"] for params in sent}

    def close(self) -> None:
        """Check that nothing outside was asked for and that no script failed, then quit."""
        try:
            for url in self.requested():
                assert url.startswith((self.url, f"blob:{self.url}", "data:")), url
            errors = [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
            assert not errors
        finally:
            self.driver.quit()


CAMERA = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream")


@pytest.fixture
def browser(server: Server) -> Iterator[Browser]:
    browser = Browser(server.url, "window-size=1280,900", *CAMERA)
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def picture(toy_root: Path) -> str:
    return str(toy_root / "toy" / "images" / "test_00000.jpg")


@pytest.mark.slow
def test_words_light_by_mouse_and_keyboard(browser: Browser, picture: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    browser["file"].send_keys(picture)
    browser.answered()
    # The keys need words to go through; the tiny captioner's most likely caption has two.
    browser.script("document.getElementById('decoder').value = 'beam_long'; decoderChanged()")
    browser["rewrite"].click()
    browser.wait(lambda: len(browser.words()) >= 8)
    words = [word.text for word in browser.words()]
    assert browser["photograph"].is_displayed() and not browser.lit()
    assert browser["spoken"].get_attribute("textContent") == f"Caption: {' '.join(words)}."
    ActionChains(browser.driver).move_to_element(browser.words()[1]).perform()
    assert browser["place"].text.startswith(f"“{words[1]}”: looked at the ")
    shade = browser.script("return getComputedStyle(document.getElementById('light')).backgroundImage")
    assert shade.startswith('url("data:image/png') and "on" in browser["light"].get_attribute("class")
    ActionChains(browser.driver).move_to_element(browser["copy"]).perform()
    assert browser["place"].text == "" and not browser.lit()

    browser.script("document.getElementById('camera').focus()")
    assert browser.keys(Keys.TAB).text == words[0] and len(browser.lit()) == 1
    assert browser.keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).text == words[2]
    assert browser.keys(Keys.HOME).text == words[0] and browser.keys(Keys.END).text == words[-1]
    assert browser.keys(Keys.ENTER).get_attribute("aria-pressed") == "true"
    assert browser.keys(Keys.TAB).get_attribute("id") == "copy"  # the words are one stop of the Tab key
    assert browser.lit() == [words[-1]]  # what was pressed stays lit
    browser.keys(Keys.ESCAPE)
    assert not browser.lit()


@pytest.mark.slow
def test_alternatives_required_words_and_copying(browser: Browser, picture: str) -> None:
    browser["file"].send_keys(picture)
    browser.answered()
    captions = browser["alternatives"].find_elements("tag name", "button")
    assert len(captions) == 3 and all(caption.text.endswith("%") for caption in captions)
    wanted = captions[1].get_attribute("data-text")
    captions[1].click()
    browser.wait(lambda: captions[1].get_attribute("aria-current") == "true")
    assert [word.text for word in browser.words()] == wanted.split()
    browser["copy"].click()
    browser.wait(lambda: browser["copied"].text)
    assert browser["copied"].text == f"Copied: {wanted[0].upper()}{wanted[1:]}."

    browser["required"].send_keys("unicorn")
    browser["rewrite"].click()
    browser.wait(lambda: browser["problem"].is_displayed())
    assert browser["problem"].text == "The model does not know the word “unicorn”."
    assert browser["answer"].is_displayed()  # the caption of before stays
    browser["required"].clear()
    browser["required"].send_keys("three, square")
    browser["rewrite"].click()
    browser.wait(lambda: {"three", "square"} <= {word.text for word in browser.words()})
    assert not browser["problem"].is_displayed()
    browser.script("document.getElementById('decoder').value = 'greedy'; decoderChanged()")
    assert not browser["required"].is_enabled()


@pytest.mark.slow
def test_pictures_come_by_drop_paste_and_camera(browser: Browser, picture: str) -> None:
    content = base64.b64encode(Path(picture).read_bytes()).decode()
    for event in ("drop", "paste"):
        browser.load()
        browser.hand_over(event, "image/jpeg", content)
        browser.answered()
    browser["camera"].click()
    browser.wait(lambda: browser.script("return document.querySelector('video').videoWidth"))
    browser["take"].click()
    browser.wait(lambda: browser.script("return document.getElementById('photograph').naturalWidth") > 300)
    browser.answered()
    assert browser.script("return document.querySelector('video').srcObject") is None  # the camera is off


@pytest.mark.slow
def test_what_is_no_photograph_is_explained(browser: Browser, picture: str, tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("not a picture")
    (tmp_path / "large.jpg").write_bytes(bytes(26_000_000))
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7")
    for name, message in (
        ("note.jpg", "This file is not a picture"),
        ("large.jpg", "The file has 26 MB; up to 25 MB can be sent."),
        ("paper.pdf", "This file is a PDF document"),
    ):
        browser["file"].send_keys(str(tmp_path / name))
        browser.wait(lambda message=message: browser["problem"].text.startswith(message))
        assert not browser["answer"].is_displayed() and browser["invitation"].is_displayed()
    browser.hand_over("paste", "text/plain", "https://example.org/dog.jpg")
    assert browser["problem"].text.startswith("That is a link, not a file. Save the picture first")
    browser["file"].send_keys(picture)
    browser.answered()
    assert not browser["problem"].is_displayed()
    words = browser["words"].text
    browser["file"].send_keys(str(tmp_path / "note.jpg"))
    browser.wait(lambda: browser["problem"].is_displayed())
    browser.answered()
    assert browser["words"].text == words and browser["photograph"].is_displayed()  # as before


@pytest.mark.slow
def test_a_tiff_is_shown_although_browsers_do_not_know_it(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "scan.tif").write_bytes(photograph(300, 200, "TIFF"))
    browser["file"].send_keys(str(tmp_path / "scan.tif"))
    browser.answered()
    browser.wait(lambda: browser["photograph"].is_displayed())


@pytest.mark.slow
def test_a_phone_in_the_dark(server: Server, picture: str) -> None:
    browser = Browser(server.url, mobile={"width": 360, "height": 740, "pixelRatio": 2, "touch": True})
    try:
        scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        browser["file"].send_keys(picture)
        browser.answered()
        assert browser.script("return document.documentElement.scrollWidth <= innerWidth")
        red, green, blue = re.findall(
            r"\d+", browser.script("return getComputedStyle(document.body).backgroundColor")
        )
        assert max(map(int, (red, green, blue))) < 60
        browser.words()[1].click()  # a tap
        assert browser["place"].text and browser.words()[1].get_attribute("aria-pressed") == "true"
        # The photograph and the word are on the screen together.
        place = "const box = document.getElementById(arguments[0]).getBoundingClientRect(); "
        visible = place + "return box.top >= -1 && box.bottom <= innerHeight + 1"
        assert browser.script(visible, "photograph") and browser.script(visible, "words")
        small = "return [...document.querySelectorAll('button')].filter((b) => b.offsetParent && b.offsetHeight < 44)"
        assert not browser.script(f"{small}.map((b) => b.textContent)")  # a finger is 44 pixels wide
    finally:
        browser.close()
