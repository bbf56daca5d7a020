"""The console over real HTTP: answers, paging, the stream, and who may look."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_core.config.schema import Config, Console, Gateway
from edge_core.console import View, serve
from edge_core.console.server import MAX_ROWS, MAX_STREAMS, PAGES, STATIC, is_loopback
from tests.conftest import eventually

NOW = 1_764_000_000


class Box:
    """A gateway to look at."""

    def __init__(self, meters: int = 120) -> None:
        self.rows = [
            {
                "meter": f"GP{i:03}",
                "line": f"feeder-{i % 3}",
                "model": "is15959-3ph",
                "device": f"{10_000_000 + i}",
                "state": "silent" if i % 10 == 0 else "ok",
                "last_read": None if i % 10 == 0 else NOW - i,
                "rows": i,
                "failures": 2 if i % 10 == 0 else 0,
                "error": "no answer" if i % 10 == 0 else None,
                "error_class": "LineSilent" if i % 10 == 0 else None,
                "clock_offset_s": i - 60,
            }
            for i in range(meters)
        ]
        self.heard: list[dict[str, Any]] = []

    def overview(self) -> dict[str, Any]:
        return {
            "gateway": "dcu-1",
            "civil": NOW,
            "meters": {"total": len(self.rows), "silent": 12, "parked": 0},
        }

    def meters(self) -> list[dict[str, Any]]:
        return self.rows

    def meter(self, meter: str) -> dict[str, Any]:
        row = {r["meter"]: r for r in self.rows}[meter]
        return row | {
            "address": "10.0.0.1:4059",
            "due": {"interval": NOW + 60},
            "ledger": self.gaps(meter),
        }

    def gaps(self, meter: str) -> list[dict[str, Any]]:
        return [
            {
                "device": "1",
                "profile": "1.0.99.1.0.255",
                "kind": "interval",
                "captured": 100,
                "missing": 4,
            },
            {
                "device": "1",
                "profile": "1.0.99.2.0.255",
                "kind": "midnight",
                "captured": 2,
                "missing": 0,
            },
        ]

    def alarms(self) -> list[dict[str, Any]]:
        return list(reversed(self.heard))

    def events(self) -> list[dict[str, Any]]:
        return [r for r in self.rows if r["failures"]]


_fits: View = Box()


class Site:
    """A console that runs, and a client."""

    def __init__(self, url: str) -> None:
        match = re.fullmatch(r"http://(.+):(\d+)/", url)
        assert match
        self.host, self.port = match[1].strip("[]"), int(match[2])

    def _get(
        self, path: str, method: str, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, body

    async def get(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        return await asyncio.to_thread(self._get, path, method, headers)

    async def json(self, path: str) -> Any:
        status, _, body = await self.get(path)
        assert status == 200, body
        return json.loads(body)

    @contextmanager
    def stream(self) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        connection.request("GET", "/api/stream")
        yield connection.getresponse()
        connection.close()


@asynccontextmanager
async def running(box: View, **console: str) -> AsyncIterator[Site]:
    config = Config(
        gateway=Gateway(id="dcu-1"), console=Console(**({"listen": "127.0.0.1:0"} | console))
    )
    urls: list[str] = []
    task = asyncio.create_task(serve(config, box, on_listening=urls.append))
    await eventually(lambda: urls or task.done())
    assert urls, "it does not run"
    site = Site(urls[0])

    async def answers() -> bool:
        try:
            await site.get("/healthz")
        except OSError:
            return False
        return True

    await eventually(answers)
    try:
        yield site
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    with pytest.raises(OSError):  # noqa: PT011 refused or reset
        await site.get("/healthz")


async def test_the_page_and_its_parts_ask_nobody_else() -> None:
    async with running(Box()) as site:
        for path, (name, kind) in PAGES.items():
            status, headers, body = await site.get(path)
            assert status == 200
            assert headers["content-type"].startswith(kind)
            assert body == (STATIC / name).read_bytes()
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert "server" not in headers
            addresses = re.findall(rb"https?://[^\"')\s]+", body)
            assert set(addresses) <= {b"http://www.w3.org/2000/svg"}, "names of namespaces alone"
        assert (await site.get("/nothing"))[0] == 404
        assert (await site.get("/../server.py"))[0] == 404
        assert (await site.get("/static/%2e%2e/server.py"))[0] == 404


def test_the_page_has_what_its_script_uses() -> None:
    page = (STATIC / "index.html").read_text()
    script = (STATIC / "app.js").read_text()
    ids = set(re.findall(r'\bid="([a-z-]+)"', page))
    used = set(re.findall(r'\$\("([a-z-]+)"\)', script))
    assert used <= ids
    assert "innerHTML" not in script
    assert "style=" not in page, "the policy forbids inline styles"
    assert "<script>" not in page


async def test_answers() -> None:
    async with running(Box()) as site:
        assert (await site.json("/api/overview"))["gateway"] == "dcu-1"
        assert await site.json("/api/alarms") == []
        assert len(await site.json("/api/events")) == 12
        status, headers, body = await site.get("/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b"# TYPE opendcu_process_memory_bytes gauge" in body
        meter = await site.json("/api/meters/GP010")
        assert meter["why"]["answer"].startswith("GP010: it does not answer")
        assert meter["ledger"][0]["missing"] == 4
        assert (await site.get("/api/meters/GP999"))[0] == 404
        for method in ("POST", "PUT", "DELETE"):
            assert (await site.get("/api/overview", method))[0] == 405


async def test_meters_are_paged_filtered_and_sorted() -> None:
    async with running(Box()) as site:
        first = await site.json("/api/meters")
        assert (first["total"], len(first["rows"])) == (120, 50)
        assert first["counts"] == {"ok": 108, "silent": 12}
        assert (first["rows"][0]["captured"], first["rows"][0]["missing"]) == (102, 4)
        last = await site.json("/api/meters?offset=100")
        assert [r["meter"] for r in last["rows"]][-1] == "GP119"
        silent = await site.json("/api/meters?state=silent&sort=meter&desc=1")
        assert (silent["total"], silent["rows"][0]["meter"]) == (12, "GP110")
        assert silent["counts"] == {"ok": 108, "silent": 12}
        assert (await site.json("/api/meters?q=10000042"))["rows"][0]["meter"] == "GP042"
        assert (await site.json("/api/meters?q=feeder-1"))["total"] == 40
        oldest = await site.json("/api/meters?sort=last_read")
        assert oldest["rows"][0]["last_read"] is None
        assert (await site.json("/api/meters?sort=__class__&offset=-5&limit=x"))["offset"] == 0
        assert len((await site.json("/api/meters?limit=100000"))["rows"]) == min(120, MAX_ROWS)


async def test_the_stream_tells_the_overview_and_each_alarm_once() -> None:
    box = Box()
    box.heard.append({"id": "old", "code": "restore"})
    async with running(box) as site:

        def listen() -> list[tuple[str, Any]]:
            seen: list[tuple[str, Any]] = []
            with site.stream() as answer:
                assert answer.getheader("content-type", "").startswith("text/event-stream")
                while [name for name, _ in seen].count("overview") < 3:
                    name = answer.readline().decode().removeprefix("event: ").strip()
                    seen.append(
                        (name, json.loads(answer.readline().decode().removeprefix("data: ")))
                    )
                    answer.readline()
                    if len(seen) == 1:
                        box.heard.extend(
                            ({"id": "a1", "code": "last-gasp"}, {"id": "a2", "code": "magnet"})
                        )
            return seen

        seen = await asyncio.to_thread(listen)
        assert [name for name, _ in seen] == ["overview", "alarm", "alarm", "overview", "overview"]
        assert [value["id"] for name, value in seen if name == "alarm"] == ["a1", "a2"]
        assert seen[0][1]["gateway"] == "dcu-1"


async def test_streams_are_bounded_and_end_with_the_gateway() -> None:
    async with running(Box()) as site:
        connections = [
            http.client.HTTPConnection(site.host, site.port, timeout=10)
            for _ in range(MAX_STREAMS + 1)
        ]

        def opened(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
            connection.request("GET", "/api/stream")
            answer = connection.getresponse()
            if answer.status == 200:
                answer.readline()
            return answer

        answers = [await asyncio.to_thread(opened, c) for c in connections]
        assert [a.status for a in answers] == [200] * MAX_STREAMS + [503]
    # the streams were still open when the gateway stopped: `running` asserts that it hung up
    for answer, connection in zip(answers, connections, strict=True):
        await asyncio.to_thread(answer.read)
        connection.close()


# Who may look ---------------------------------------------------------------------------------------------------------


async def test_without_a_token_only_loopback_names_are_answered() -> None:
    async with running(Box()) as site:
        for host in ("127.0.0.1", "localhost", "[::1]", f"localhost:{site.port}"):
            assert (await site.get("/api/overview", Host=host))[0] == 200, host
        for host in (
            "evil.example",
            "192.168.1.5",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
        ):
            for path in ("/", "/api/overview", "/api/stream", "/metrics"):
                assert (await site.get(path, Host=host))[0] == 403, host


async def test_with_a_token_nobody_looks_without(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-token\n")
    (tmp_path / "token").chmod(0o600)
    async with running(Box(), listen="0.0.0.0:0", token=f"file:{tmp_path / 'token'}") as site:
        for path in ("/", "/api/overview", "/api/stream", "/metrics", "/healthz"):
            assert (await site.get(path))[0] == 401
        assert (await site.get("/api/overview", Authorization="Bearer wrong"))[0] == 401
        assert (await site.get("/api/overview", Authorization="Bearer s3cret-token"))[0] == 200
        assert (await site.get("/?token=wrong"))[0] == 401
        status, headers, _ = await site.get("/?token=s3cret-token")
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=strict" in cookie.lower()
        assert "s3cret" not in cookie
        assert (await site.get("/api/overview", Cookie=cookie.partition(";")[0]))[0] == 200
        assert (await site.get("/api/overview", Cookie="opendcu=nonsense"))[0] == 401
        assert (await site.get("/api/overview", Cookie=cookie.partition(";")[0], Host="box.lan"))[
            0
        ] == 200


@pytest.mark.parametrize(
    ("console", "says"),
    [
        ({"listen": "0.0.0.0:0"}, "not loopback"),
        ({"token": "file:/nowhere/token"}, "no such file"),
        ({"listen": "127.0.0.1:{taken}"}, "in use"),
        ({"listen": "203.0.113.7:8480", "token": "env:HOME"}, "assign"),
    ],
)
async def test_a_console_that_cannot_run_says_so_and_ends_alone(
    console: dict[str, str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as other, caplog.at_level(logging.WARNING):
        other.bind(("127.0.0.1", 0))
        other.listen()
        console = {k: v.format(taken=other.getsockname()[1]) for k, v in console.items()}
        config = Config(
            gateway=Gateway(id="dcu-1"), console=Console(**({"listen": "127.0.0.1:0"} | console))
        )
        await serve(config, Box())
    assert says in caplog.text


def test_loopback() -> None:
    assert all(is_loopback(h) for h in ("127.0.0.1", "127.8.9.1", "::1", "localhost"))
    assert not any(
        is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "")
    )
