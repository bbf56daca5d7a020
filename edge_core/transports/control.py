"""The control socket: how commands talk to the running gateway that owns lines, counters and journal.

`<data_dir>/control.sock` is a Unix stream socket of mode 0600; only our own user and root are answered. A connection
carries one request, one JSON line `{"do": "<name>", ...}`, and its answer: any number of lines `{"value": ...}`, then
`{"end": true}` or `{"error": "<class of errors.py>", "message": ..., ...fields}`. A handler is an async function (one
value) or an async generator (a stream, as for `tap`), which is closed as soon as the client hangs up.

Bounds: a request has MAX_REQUEST octets and comes within REQUEST_S; an answer line has MAX_ANSWER octets; there are
MAX_CLIENTS at a time; a client that does not read for STALL_S is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core import errors
from edge_core.errors import ControlError, GatewayAbsent, OpenDCUError

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

Request = dict[str, Any]
Handler = Callable[[Request], Awaitable[Any] | AsyncIterator[Any]]

MAX_REQUEST = 1 << 20
MAX_ANSWER = 64 << 20
MAX_CLIENTS = 32
REQUEST_S = 10.0
STALL_S = 30.0
MAX_SUN_PATH = 107  # octets of a socket's path, sun_path in unix(7) less its NUL


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of the path that fits into sun_path: through a descriptor of its folder where it is too long."""
    if len(os.fsencode(path)) <= MAX_SUN_PATH:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


# Server ---------------------------------------------------------------------------------------------------------------


class ControlServer:
    """Answers requests until it is closed.

    Args:
        path: where the socket is made; one that is left over from a killed gateway is replaced.
        handlers: by the name in `do`.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = dict(handlers)
        self._clients: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen."""
        # Bound under another name and moved into place: there is no moment without the mode, nor without a socket.
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            fresh.unlink(missing_ok=True)
            with short_path(fresh) as name:
                listener.bind(name)
            fresh.chmod(0o600)
            listener.listen(MAX_CLIENTS)
            self._inode = fresh.stat().st_ino
            fresh.rename(self._path)
            self._server = await asyncio.start_unix_server(
                self._accept, sock=listener, limit=MAX_REQUEST
            )
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Stop listening, hang up on everybody, and remove the socket if it is still ours."""
        if self._server is not None:
            self._server.close()
        clients = list(self._clients)
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close in the next turn of the loop
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer), name="control client")
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if _ours(writer):
                await self._answer(reader, writer)
            writer.close()
            async with asyncio.timeout(STALL_S):
                await writer.wait_closed()
        except (ConnectionError, TimeoutError):
            pass  # it hung up or does not read: nothing is owed to it
        finally:
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_S):
                request = msgspec.json.decode(await reader.readline(), type=Request)
        except ValueError as error:  # longer than MAX_REQUEST, or no JSON object
            await _send(writer, document_of(ControlError(f"not a request: {error}")))
            return
        if len(self._clients) > MAX_CLIENTS:
            await _send(writer, document_of(ControlError(f"{MAX_CLIENTS} clients already")))
            return
        name = request.get("do")
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            await _send(
                writer, document_of(ControlError(f"no such request: {name!r}; known are {known}"))
            )
            return
        pump = asyncio.create_task(_pump(handler, request, writer), name=f"control {name}")
        gone = asyncio.create_task(reader.read(1), name=f"control {name} hang-up")
        try:
            await asyncio.wait((pump, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (pump, gone):
                task.cancel()
            await asyncio.gather(pump, gone, return_exceptions=True)


def _ours(writer: asyncio.StreamWriter) -> bool:
    """Is the peer our own user, or root?"""
    peer = writer.get_extra_info("socket")
    _pid, uid, _gid = struct.unpack(
        "3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return uid in (0, os.geteuid())


async def _pump(handler: Handler, request: Request, writer: asyncio.StreamWriter) -> None:
    """Run a handler and send what it gives."""
    try:
        answer = handler(request)
        if isinstance(answer, AsyncIterator):
            try:
                async for value in answer:
                    await _send(writer, {"value": value})
            finally:
                if close := getattr(answer, "aclose", None):
                    await close()
        else:
            await _send(writer, {"value": await answer})
        await _send(writer, {"end": True})
    except (ConnectionError, TimeoutError):
        raise
    except OpenDCUError as error:
        await _send(writer, document_of(error))
    except Exception as error:
        log.exception("a request on the control socket failed", extra={"do": request.get("do")})
        await _send(
            writer,
            {
                "error": "ControlError",
                "message": f"{type(error).__name__} in the gateway, see its log",
            },
        )


async def _send(writer: asyncio.StreamWriter, document: dict[str, Any]) -> None:
    writer.write(msgspec.json.encode(document) + b"\n")
    async with asyncio.timeout(STALL_S):
        await writer.drain()


def document_of(error: OpenDCUError) -> dict[str, Any]:
    """An error as it travels: class, message, and the fields of its class."""
    cls = type(error)
    fields = (
        {f.name: getattr(error, f.name) for f in dataclasses.fields(cls)}
        if dataclasses.is_dataclass(cls)
        else {}
    )
    for name in ("offset", "code"):
        if hasattr(error, name):
            fields[name] = getattr(error, name)
    return {"error": cls.__name__, "message": str(error), "fields": fields}


def error_of(document: dict[str, Any]) -> OpenDCUError:
    """The error that a document tells of; a ControlError where its class is unknown here."""
    name, message = str(document.get("error")), str(document.get("message"))
    cls = getattr(errors, name, None)
    fields = document.get("fields") or {}
    if not (isinstance(cls, type) and issubclass(cls, OpenDCUError)):
        return ControlError(f"{name}: {message}")
    try:
        return cls(**fields) if dataclasses.is_dataclass(cls) else cls(message, **fields)
    except TypeError:
        return ControlError(f"{name}: {message}")


# Client ---------------------------------------------------------------------------------------------------------------


def stream(path: Path, request: Request, timeout_s: float = 10.0) -> Iterator[Any]:
    """The values of the answer as they come; closing the iterator hangs up.

    Args:
        timeout_s: longest wait for the connection and between two values; 0 = as long as it takes.

    Raises:
        GatewayAbsent: nobody listens.
        ControlError: no answer in time, or one that is not understood.
        OpenDCUError: what the handler raised.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(timeout_s or None)
        try:
            with short_path(path) as name:
                connection.connect(name)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise GatewayAbsent(f"no gateway listens on {path}") from None
        except OSError as error:
            raise ControlError(f"{path}: {error.strerror or error}") from None
        try:
            connection.sendall(msgspec.json.encode(request) + b"\n")
            with connection.makefile("rb") as answer:
                while line := answer.readline(MAX_ANSWER):
                    document = msgspec.json.decode(line, type=Request)
                    if "value" in document:
                        yield document["value"]
                    elif "error" in document:
                        raise error_of(document)
                    else:
                        return
            raise ControlError(f"{path}: the gateway hung up before the end of its answer")
        except TimeoutError:
            raise ControlError(f"{path}: no answer within {timeout_s:g} s") from None
        except (OSError, msgspec.DecodeError) as error:
            raise ControlError(f"{path}: {error}") from None


def ask(path: Path, request: Request, timeout_s: float = 10.0) -> Any:
    """The only value of the answer, None if there is none; raises as `stream`."""
    value = None
    for value in stream(path, request, timeout_s):  # noqa: B007 the last one; all are read, so an error is seen
        pass
    return value
