"""A page that captions photographs: `python -m captioning.app checkpoint=runs/… port=7860`.

A photograph is sent to `photograph`, which stores it and returns a token; gradio's queue then captions one
token at a time, and the file is removed. The page itself, its limits and its gate are in `captioning.page`.
"""

from captioning.cli import command, quick_help

quick_help(__name__, "app")  # before the imports that take seconds

import importlib.util
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import DictConfig, OmegaConf

from captioning.errors import InputError
from captioning.page import BusyError, Gate, Page, Uploads, join_body
from captioning.predictor import load

QUEUE = "/gradio/gradio_api/queue"
LOCAL = ("127.0.0.1", "localhost", "::1")
MAX_CONNECTIONS = 512  # further ones are answered with 503


@command("app")
def main(config: DictConfig) -> None:
    """Serve the page until Ctrl-C."""
    options: Any = OmegaConf.to_container(config, resolve=True)
    check_gradio()
    check_limits(options)
    host, port = options["host"], options["port"]
    with listen(host, port) as listener, TemporaryDirectory(prefix="captioning-") as folder:
        captioner = load(
            options["checkpoint"],
            weights=options["weights"],
            trust=options["trust"],
            model_options=options["model_options"],
        )
        max_bytes, max_pixels = (int(options[name] * 1e6) for name in ("max_megabytes", "max_megapixels"))
        uploads = Uploads(Path(folder), max_bytes=max_bytes, max_files=options["max_waiting"])
        page = Page(captioner, uploads, decoders=options["decoders"], max_pixels=max_pixels)
        app = build_app(page, local=host in LOCAL)
        print(
            f"the page is at {describe_address(host, listener.getsockname()[1])} (Ctrl-C stops it)",
            flush=True,
        )
        serve(app, listener)


def check_gradio() -> None:
    """Refuse to start without gradio.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs gradio, which is not installed: pip install 'captioning[app]'")


def check_limits(options: dict[str, Any]) -> None:
    """Refuse limits that are no numbers above 0.

    Raises:
        InputError: names the option.
    """
    for name in ("max_megabytes", "max_megapixels", "max_waiting"):
        value = options[name]
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise InputError(f"{name}={value} must be a number above 0")


def listen(host: str, port: int) -> socket.socket:
    """Open the port before anything slow is done.

    Raises:
        InputError: it is taken, or there is no such address here.
    """
    try:
        if not 0 <= port <= 65535:  # the system would take the remainder
            raise OverflowError("ports go from 0 to 65535")
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(where[:2], family=family)
    except (OSError, OverflowError, TypeError) as error:
        raise InputError(
            f"host={host} port={port} can't be listened to ({error}); port=0 takes any free port"
        ) from error


def describe_address(host: str, port: int) -> str:
    """Say where the page is, as it is typed into a browser."""
    if host in ("0.0.0.0", "::"):  # every address of this computer; none to type
        return f"http://127.0.0.1:{port}/, for others at http://{socket.gethostname()}:{port}/"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def build_app(page: Page, *, local: bool) -> Gate:
    """Build the ASGI application.

    Args:
        page: answers.
        local: only this computer can reach it.
    """
    # Gradio reads these when it is imported: no reports to its makers, and no folder but ours.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(page.uploads.folder))
    import gradio
    from fastapi import FastAPI, Request
    from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
    from starlette.requests import ClientDisconnect

    async def receive(request: Request) -> JSONResponse:
        try:
            return JSONResponse({"token": await page.uploads.store(request.stream())})
        except ClientDisconnect:
            return JSONResponse({}, 400)  # nobody reads it
        except InputError as error:
            return JSONResponse({"error": str(error)}, 503 if isinstance(error, BusyError) else 400)

    async def html(request: Request) -> HTMLResponse:
        return HTMLResponse(page.html(local=local))

    async def file(request: Request) -> FileResponse:
        return FileResponse(page.files[request.url.path.removeprefix("/")])

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_route("/", html)
    app.add_route("/photograph", receive, methods=["POST"])
    for name in page.files:
        app.add_route(f"/{name}", file)
    with gradio.Blocks(analytics_enabled=False) as blocks:
        gradio.api(page.caption, api_name="caption", concurrency_limit=1)
    blocks.queue(max_size=page.uploads.max_files)
    gradio.mount_gradio_app(app, blocks, "/gradio", show_error=False, ssr_mode=False)
    routes = {*(("GET", f"/{name}") for name in ("", *page.files)), ("POST", "/photograph")}
    return Gate(
        app,
        routes={*routes, ("POST", f"{QUEUE}/join"), ("GET", f"{QUEUE}/data")},
        rewrite={f"{QUEUE}/join": join_body},
        hosts=LOCAL if local else (),
    )


def serve(app: Gate, listener: socket.socket) -> None:
    """Answer requests until the process is asked to stop."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=2,  # pages that wait for a caption keep their connections open
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
