"""Requests to a gateway that may run in several processes, each with a control socket of its own.

Who is asked: whoever listens; the process with the uplink first. Sockets that killed processes left behind are passed over.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

from edge_core.errors import GatewayAbsent, NotHere, OpenDCUError
from edge_core.transports.control import ask, stream

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from edge_core.transports.control import Request


def ask_all(paths: Sequence[Path], request: Request, timeout_s: float = 10.0) -> list[Any]:
    """What each process answers that has an answer; never empty.

    Raises:
        GatewayAbsent: nobody listens.
        NotHere: all who listen say that it is another's.
        OpenDCUError: what a handler raised, or no answer in time.
    """
    answers, elsewhere = [], None
    for path in paths:
        try:
            answers.append(ask(path, request, timeout_s))
        except GatewayAbsent:
            continue
        except NotHere as error:
            elsewhere = error
    if not answers:
        raise elsewhere or GatewayAbsent(f"no gateway listens on {paths[0]}")
    return answers


def ask_owner(paths: Sequence[Path], request: Request, timeout_s: float = 10.0) -> Any:
    """What the process answers that has the meter; raises as `ask_all`."""
    elsewhere = None
    for path in paths:
        try:
            return ask(path, request, timeout_s)
        except GatewayAbsent:
            continue
        except NotHere as error:
            elsewhere = error
    raise elsewhere or GatewayAbsent(f"no gateway listens on {paths[0]}")


def stream_all(
    paths: Sequence[Path], request: Request, timeout_s: float = 10.0
) -> Iterator[tuple[int, Any]]:
    """(which process, value) of all streams as they come, until all have ended or the iterator is closed.

    Raises:
        GatewayAbsent: nobody listens.
        OpenDCUError: what a handler raised, or no value in time.
    """
    values: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    closed = threading.Event()

    def follow(number: int, path: Path) -> None:
        try:
            for value in stream(path, request, timeout_s):
                values.put((number, value))
                if closed.is_set():
                    return
        except OpenDCUError as error:
            values.put((number, error))
        else:
            values.put((number, None))

    for number, path in enumerate(paths):
        threading.Thread(target=follow, args=(number, path), daemon=True).start()
    left, heard = len(paths), False
    try:
        while left:
            number, value = values.get()
            if isinstance(value, GatewayAbsent) or value is None:
                left -= 1
            elif isinstance(value, OpenDCUError):
                raise value
            else:
                heard = True
                yield number, value
    finally:
        closed.set()
    if not heard:
        raise GatewayAbsent(f"no gateway listens on {paths[0]}")
