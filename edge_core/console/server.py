"""The console: one page, its JSON API and a stream of changes, over plain HTTP on loopback.

    GET /                     the page; no build step, nothing from other hosts
    GET /api/overview         the box
    GET /api/meters?state=&q=&sort=&desc=&offset=&limit=     rows, counted by state
    GET /api/meters/<meter>   one meter with its ledger and `why`
    GET /api/alarms  /api/events
    GET /api/stream           server-sent events: overview, alarm
    GET /metrics              Prometheus text
    GET /healthz              200 while the loop turns

It only looks: there is no method but GET. Without a token it listens on loopback alone and answers only requests that
name a loopback host (a web page elsewhere cannot rebind its name to us). With a token every request needs it, as
`Authorization: Bearer`, or once as `/?token=`, which leaves a cookie. Bounds: MAX_CLIENTS connections, MAX_STREAMS
streams, MAX_ROWS rows an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import logging
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from edge_core.config.keys import read_reference
from edge_core.config.values import join_host_port, split_host_port
from edge_core.console.view import View, why
from edge_core.errors import OpenDCUError
from edge_core.health import events, metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.requests import Request

    from edge_core.config.schema import Config
    from edge_core.domain import Secret

log = logging.getLogger(__name__)

STATIC = Path(__file__).with_name("static")
PAGES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MAX_CLIENTS = 64
MAX_STREAMS = 16
MAX_ROWS = 200
STREAM_EVERY_S = 1.0
STOP_S = 1.0
COOKIE = "opendcu"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
ORDERS = ("meter", "line", "model", "state", "last_read", "rows", "failures", "clock_offset_s")


async def serve(
    config: Config, view: View, *, on_listening: Callable[[str], None] | None = None
) -> None:
    """Serve the console until cancelled.

    A port that is taken, or a token that cannot be read, is logged and ends the console alone: the gateway goes on.

    Args:
        on_listening: gets the URL once the port is bound.
    """
    host, port = split_host_port(config.console.listen)
    try:
        token = read_reference(config.console.token)
        listener = _bind(host, port) if token is not None or is_loopback(host) else None
    except (OSError, OpenDCUError) as error:
        events.console_off(config.console.listen, str(error))
        return
    if listener is None:
        events.console_off(config.console.listen, "it is not loopback, and there is no token")
        return
    console = Console(view, token)
    server = _Server(
        uvicorn.Config(
            console.app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CLIENTS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=int(STOP_S),
        )
    )
    url = f"http://{join_host_port(host, listener.getsockname()[1])}/"
    log.info("console: %s", url)
    if on_listening is not None:
        on_listening(url)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="console server")
    try:
        await asyncio.shield(serving)
    finally:
        console.stopping.set()
        server.should_exit = True
        await asyncio.wait([serving], timeout=2 * STOP_S)
        serving.cancel()
        listener.close()


def is_loopback(host: str) -> bool:
    """Does the host name only this machine?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MAX_CLIENTS)
    except BaseException:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    """uvicorn inside a loop that has its own signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Console:
    """The application over one view."""

    def __init__(self, view: View, token: Secret | None = None) -> None:
        self._view = view
        self._token = token
        self._cookie = (
            hashlib.sha256(b"opendcu console" + token.reveal()).hexdigest() if token else ""
        )
        self._streams = 0
        self.stopping = asyncio.Event()
        routes = [
            Route("/api/overview", self._guarded(self._overview)),
            Route("/api/meters", self._guarded(self._meters)),
            Route("/api/meters/{meter:path}", self._guarded(self._meter)),
            Route("/api/alarms", self._guarded(self._alarms)),
            Route("/api/events", self._guarded(self._events)),
            Route("/api/stream", self._guarded(self._stream)),
            Route("/metrics", self._guarded(self._metrics)),
            Route("/healthz", self._guarded(self._healthz)),
            *(Route(path, self._guarded(self._page)) for path in PAGES),
        ]
        self.app = Starlette(routes=routes)

    # --- who may look

    def _guarded(
        self, answer: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            response = self._refusal(request) or await answer(request)
            response.headers.update(HEADERS)
            return response

        return guarded

    def _refusal(self, request: Request) -> Response | None:
        """The answer to who may not look, or None."""
        if self._token is None:
            if is_loopback(request.url.hostname or ""):
                return None
            return PlainTextResponse("the console answers to loopback names alone\n", 403)
        given = request.headers.get("authorization", "").removeprefix(
            "Bearer "
        ) or request.query_params.get("token", "")
        if given:
            if not hmac.compare_digest(given.encode(), self._token.reveal()):
                return PlainTextResponse("wrong token\n", 401)
            if "token" in request.query_params:
                response = RedirectResponse(request.url.path, 303)
                response.set_cookie(
                    COOKIE, self._cookie, httponly=True, samesite="strict", path="/"
                )
                return response
            return None
        if hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self._cookie.encode()):
            return None
        return PlainTextResponse("open /?token=... once, or send Authorization: Bearer ...\n", 401)

    # --- pages and answers

    async def _page(self, request: Request) -> Response:
        name, kind = PAGES[request.url.path]
        return Response((STATIC / name).read_bytes(), media_type=kind)

    async def _overview(self, _request: Request) -> Response:
        return _json(self._view.overview())

    async def _meters(self, request: Request) -> Response:
        wanted = request.query_params
        rows = list(self._view.meters())
        counts: dict[str, int] = {}
        for row in rows:
            counts[row["state"]] = counts.get(row["state"], 0) + 1
        if state := wanted.get("state"):
            rows = [row for row in rows if row["state"] == state]
        if text := wanted.get("q", "").lower():
            rows = [
                row
                for row in rows
                if any(
                    text in str(row.get(k, "")).lower()
                    for k in ("meter", "line", "model", "device")
                )
            ]
        order = wanted.get("sort", "")
        if order in ORDERS:
            rows.sort(key=lambda row: _sortable(row.get(order)), reverse=wanted.get("desc") == "1")
        offset, limit = (
            _natural(wanted.get("offset"), 0),
            min(_natural(wanted.get("limit"), 50), MAX_ROWS),
        )
        shown = rows[offset : offset + limit]
        accounts = await asyncio.gather(*(self._account(row["meter"]) for row in shown))
        page = [dict(row) | account for row, account in zip(shown, accounts, strict=True)]
        return _json({"total": len(rows), "counts": counts, "offset": offset, "rows": page})

    async def _account(self, meter: str) -> dict[str, Any]:
        """Captured and missing rows of the profiles of a meter."""
        found = self._view.gaps(meter)
        entries = await found if isinstance(found, Awaitable) else found
        return {
            key: sum(entry.get(key) or 0 for entry in entries) for key in ("captured", "missing")
        }

    async def _meter(self, request: Request) -> Response:
        try:
            found = self._view.meter(request.path_params["meter"])
            meter = await found if isinstance(found, Awaitable) else found
        except KeyError:
            return _json({"error": "no such meter here"}, 404)
        civil = self._view.overview().get("civil", 0)
        return _json({**meter, "civil": civil, "why": why(meter, self._view.meters(), civil)})

    async def _alarms(self, _request: Request) -> Response:
        return _json(self._view.alarms())

    async def _events(self, _request: Request) -> Response:
        return _json(list(self._view.events())[:MAX_ROWS])

    async def _metrics(self, _request: Request) -> Response:
        return PlainTextResponse(metrics.REGISTRY.text(), media_type="text/plain; version=0.0.4")

    async def _healthz(self, _request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _stream(self, _request: Request) -> Response:
        if self._streams >= MAX_STREAMS:
            return PlainTextResponse(f"{MAX_STREAMS} streams already\n", 503)
        return StreamingResponse(self._changes(), media_type="text/event-stream")

    async def _changes(self) -> AsyncIterator[bytes]:
        """The overview each second, and each alarm once, newest last."""
        self._streams += 1
        known: set[str] = {alarm["id"] for alarm in self._view.alarms()}
        try:
            while not self.stopping.is_set():
                alarms = self._view.alarms()
                for alarm in reversed([a for a in alarms if a["id"] not in known]):
                    yield _event("alarm", alarm)
                known = {alarm["id"] for alarm in alarms}
                yield _event("overview", self._view.overview())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), STREAM_EVERY_S)
        finally:
            self._streams -= 1


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _event(name: str, value: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode(value) + b"\n\n"


def _natural(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else default


def _sortable(value: Any) -> tuple[bool, Any]:
    """Numbers and texts, what is not known first."""
    return (value is not None, value if value is not None else 0)
