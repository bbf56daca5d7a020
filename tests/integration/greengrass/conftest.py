"""A fake nucleus in a process of its own, and the connection to it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import eventually_sync

PROGRAM = Path(__file__).parents[2] / "peers" / "fake_nucleus.py"


class Nucleus:
    """The fake nucleus as a child; orders go to its standard input."""

    def __init__(self, folder: Path, kind: str = "lite", broker: Any = 0) -> None:
        self.kind, self.broker = kind, broker
        self.socket = str(folder / "ipc.sock")
        self.start()

    def start(self) -> None:
        Path(self.socket).unlink(missing_ok=True)
        extra = [json.dumps(self.broker)] if self.broker else []
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, self.socket, self.kind, *extra],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.answer() == {"ready": True}

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def order(self, do: str, **what: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        assert "error" not in answer, answer
        return answer

    def fail(self, operation: str, error: str, times: int, topic: str = "") -> None:
        self.order("fail", operation=operation, error=error, times=times, topic=topic)

    def deliver(self, topic: str, payload: bytes) -> None:
        self.order("deliver", topic=topic, payload=base64.b64encode(payload).decode())

    def published(self) -> list[tuple[str, bytes]]:
        return [(t, base64.b64decode(p)) for t, p in self.order("status")["published"]]

    def count(self, what: str) -> int:
        return self.order("status")["counts"].get(what, 0)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_GG_NUCLEUS_DOMAIN_SOCKET_FILEPATH_FOR_COMPONENT": self.socket,
            "SVCUID": "the-token",
            "GGC_VERSION": "2.6.0" if self.kind == "lite" else "2.17.0",
            "AWS_IOT_THING_NAME": "dcu-0001",
        }

    def until(self, condition: Callable[[dict[str, Any]], object], within_s: float = 10.0) -> None:
        eventually_sync(lambda: condition(self.order("status")), within_s)


@pytest.fixture
def nuclei() -> Iterator[Callable[..., Nucleus]]:
    """Makes fake nuclei; the path of a socket is short, wherever pytest works."""
    made: list[Nucleus] = []
    with tempfile.TemporaryDirectory(prefix="gg") as folder:

        def make(kind: str = "lite", broker: int = 0) -> Nucleus:
            made.append(Nucleus(Path(folder), kind, broker))
            return made[-1]

        yield make
        for nucleus in made:
            nucleus.kill()


@pytest.fixture(params=["lite", "classic"])
def nucleus(request: pytest.FixtureRequest, nuclei: Callable[..., Nucleus]) -> Nucleus:
    return nuclei(request.param)


@pytest.fixture
def lite(nuclei: Callable[..., Nucleus]) -> Nucleus:
    return nuclei("lite")
