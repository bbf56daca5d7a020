"""A second opinion: what dlms-cosem 21.3.2 makes of the answers that we deciphered, in a process of its own.

It gets get-responses in the clear and nothing else: no socket, no key, its logging off (docs/decisions). What it does
not implement is said to be so, not counted as a difference. Needs the extra `lab`.

Run as a module it is that process: JSON lines of hex on standard input, one JSON document a line back.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any, Final

from edge_core.errors import OpenDCUError, ProtocolError
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.axdr import BitString

if TYPE_CHECKING:
    from collections.abc import Sequence

PEER: Final = "dlms-cosem 21.3.2"
TIMEOUT_S: Final = 10.0
"""For one answer: its parser loops for ever on some cut values."""
MAX_DIFFERENCES: Final = 20


class NoSecondOpinion(OpenDCUError):
    """The peer is not installed, or did not answer."""


async def compare(answers: Sequence[tuple[str, bytes]]) -> dict[str, Any]:
    """Both readings of the answers, compared.

    Args:
        answers: what was asked, and the value that came as A-XDR.

    Returns:
        `{"by", "compared", "not_understood", "differences": [text]}`.

    Raises:
        NoSecondOpinion: dlms-cosem is missing, or answered nothing.
    """
    if importlib.util.find_spec("dlms_cosem") is None:
        raise NoSecondOpinion(f"{PEER} is not installed: pip install 'opendcu[lab]'")
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "edge_core.acquisition.second_opinion",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=64 << 20,
    )
    replies = await _replies(child, [data for _, data in answers])
    if not replies:
        raise NoSecondOpinion(f"{PEER} did not answer")
    differences: list[str] = []
    not_understood = len(answers) - len(replies)
    for (what, data), reply in zip(answers, replies, strict=False):
        if "error" in reply:
            not_understood += 1
            continue
        try:
            ours = neutral(axdr.decode_whole(data).plain())
        except ProtocolError as error:
            ours = str(error)
        if ours != reply["value"] and len(differences) < MAX_DIFFERENCES:
            differences.append(
                f"{what}: we read {_short(ours)}, {PEER} reads {_short(reply['value'])}"
            )
    return {
        "by": PEER,
        "compared": len(answers) - not_understood,
        "not_understood": not_understood,
        "differences": differences,
    }


async def _replies(
    child: asyncio.subprocess.Process, values: Sequence[bytes]
) -> list[dict[str, Any]]:
    """What the peer makes of each value, up to the first one that it hangs or dies on."""
    assert child.stdin is not None
    assert child.stdout is not None
    replies: list[dict[str, Any]] = []
    try:
        for data in values:
            child.stdin.write(json.dumps((b"\xc4\x01\xc1\x00" + data).hex()).encode() + b"\n")
            async with asyncio.timeout(TIMEOUT_S):
                await child.stdin.drain()
                line = await child.stdout.readline()
            if not line:
                break
            replies.append(json.loads(line))
    except (TimeoutError, ConnectionError):
        pass
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()
    return replies


def neutral(value: Any) -> Any:
    """A value so that both libraries' types compare: octets and text as hex, bit-strings as 0s and 1s."""
    if isinstance(value, (list, tuple)):
        return [neutral(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).hex()
    if isinstance(value, BitString):
        return str(value)
    if isinstance(value, str):
        return value.encode().hex()
    return int(value) if isinstance(value, bool) else value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _child() -> None:
    """Answer on standard output what dlms-cosem makes of each get-response."""
    from dlms_cosem.protocol.xdlms.get import GetResponseFactory
    from dlms_cosem.utils import parse_as_dlms_data

    for line in sys.stdin:
        try:
            response = GetResponseFactory.from_bytes(bytes.fromhex(json.loads(line)))
            reply = {"value": neutral(parse_as_dlms_data(response.data))}
        except Exception as error:  # noqa: BLE001 whatever it raises is its answer
            reply = {"error": type(error).__name__}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _child()
