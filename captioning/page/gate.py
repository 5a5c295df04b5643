"""Which requests the page's server answers: those that the page makes, and nothing else.

Gradio brings some eighty routes, file and URL proxies among them; the page needs two. Of these, the one that
takes a request into the queue also copies any file of this computer, and downloads any URL, that the request
names in gradio's own form, so its body is read here and written anew. Requests of other sites are refused: a
page that the user has open elsewhere must not use a server that only listens on this computer, neither
directly nor under a host name that its owner points to 127.0.0.1 (DNS rebinding).
"""

import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

MAX_BODY = 1 << 14  # bytes of a request that is not a photograph
NUM_TEXTS = 4  # arguments of `Page.caption`

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY = {
    "default-src": "'none'",  # the browser loads nothing from elsewhere, whatever the page says
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'self'",
}
_HEADERS = {
    b"content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()).encode(),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


class Gate:
    """An ASGI application in front of another.

    Args:
        app: answers what is let through.
        routes: methods and paths that are.
        rewrite: for paths whose bodies are small, makes of a body the one that `app` gets, or None to refuse.
        hosts: names under which the server may be addressed; empty for any.
    """

    def __init__(
        self,
        app: App,
        *,
        routes: Collection[tuple[str, str]],
        rewrite: Mapping[str, Callable[[bytes], bytes | None]],
        hosts: Collection[str] = (),
    ) -> None:
        self.app, self.routes, self.rewrite, self.hosts = app, routes, rewrite, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:  # a web socket, closed before it opens
            await send({"type": "websocket.close"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [header for header in message["headers"] if header[0].lower() not in _HEADERS]
                message = {**message, "headers": [*headers, *_HEADERS.items()]}
            await send(message)

        refusal = self.refusal(scope["method"], scope["path"], scope["headers"])
        if refusal is None and (rewrite := self.rewrite.get(scope["path"])):
            body = await read_body(receive)
            body = None if body is None else rewrite(body)
            if body is None:
                refusal = 400, "this is not a request of the page"
            else:
                scope, receive = with_body(scope, body, receive)
        if refusal is None:
            await self.app(scope, receive, send_with_headers)
            return
        status, text = refusal
        start = {"type": "http.response.start", "status": status}
        await send_with_headers({**start, "headers": [(b"content-type", b"text/plain; charset=utf-8")]})
        await send({"type": "http.response.body", "body": text.encode()})

    def refusal(
        self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[int, str] | None:
        """Return status and reason of a refusal, or None for a request that is let through."""
        sent = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
        if self.hosts and host_name(sent.get("host", "")) not in self.hosts:
            return 403, f"this server answers only to {', '.join(self.hosts)}"
        # Browsers add this header themselves, and scripts can't change it.
        if method != "GET" and sent.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "requests of other sites are refused"
        if (method, path) not in self.routes:
            return 404, "there is nothing here"
        return None


def join_body(body: bytes) -> bytes | None:
    """Check the page's request to gradio's queue and write it anew: four texts and a name of the session."""
    try:
        asked = json.loads(body)
        texts, session = asked["data"], asked["session_hash"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(texts, list) or len(texts) != NUM_TEXTS or not all(type(text) is str for text in texts):
        return None
    if type(session) is not str or not re.fullmatch("[0-9a-f]{8,64}", session):
        return None
    return json.dumps({"data": texts, "fn_index": 0, "session_hash": session}).encode()


async def read_body(receive: Receive) -> bytes | None:
    """Read a body; None if it is too long, or the connection is closed first."""
    body = b""
    while len(body) <= MAX_BODY:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body if len(body) <= MAX_BODY else None
    return None


def with_body(scope: Scope, body: bytes, receive: Receive) -> tuple[Scope, Receive]:
    """Return what makes an application receive another body."""
    dropped = (b"content-length", b"transfer-encoding", b"content-type", b"content-encoding")
    headers = [header for header in scope["headers"] if header[0].lower() not in dropped]
    headers += [(b"content-length", str(len(body)).encode()), (b"content-type", b"application/json")]
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_body() -> Message:
        return messages.pop() if messages else await receive()

    return {**scope, "headers": headers}, receive_body


def host_name(host: str) -> str:
    """Return the name in a Host header, without the port: `localhost:7860`, `[::1]:7860`."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
