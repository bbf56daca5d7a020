"""The decoders of what comes from meters, each as a function of any octets, and captured frames to begin with.

Each function decodes or raises ProtocolError, whatever it gets. `test_fuzz_dlms` calls them with hypothesis,
`atheris_dlms` guided by coverage.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from edge_core.acquisition.drivers.dlms.learned import capture_objects, scaler_row, whole_number
from edge_core.acquisition.drivers.dlms.mode_e import speed_of
from edge_core.acquisition.drivers.dlms.registers import object_list, text_of
from edge_core.domain import Secret
from edge_core.errors import ProtocolError
from edge_core.protocols.dlms import acse, apdu, axdr, bodies, ciphering, curves, general, push
from edge_core.protocols.dlms.blocks import BlockAssembler
from edge_core.protocols.dlms.cosem import CaptureObject
from edge_core.protocols.dlms.datetime import ClockRules, decode_datetime
from edge_core.protocols.dlms.decode import Keys, decode
from edge_core.protocols.dlms.mbus import MbusReader
from edge_core.protocols.dlms.profile import Plan, ScalerUnit
from edge_core.protocols.dlms.push_frames import PushFrames
from edge_core.protocols.dlms.security import SecurityContext
from edge_core.protocols.dlms.wrapper import WrapperReader
from edge_core.protocols.hdlc.frame import FrameReader, client_address, server_address
from edge_core.protocols.hdlc.link import Link, State
from edge_core.protocols.hdlc.parameters import parse_parameters

FRAMES = Path(__file__).parents[1] / "data" / "frames"
KEY = Secret(bytes(16))
CONTEXT = SecurityContext(0, KEY, KEY)


def _seeds() -> list[bytes]:
    out = []
    for path in sorted(FRAMES.glob("*.json")):
        case = json.loads(path.read_text())
        frames = case.get("frames") or []
        for value in frames.values() if isinstance(frames, dict) else [frames]:
            out += [bytes.fromhex(frame)[:2000] for frame in value]
        plain = case.get("plain_apdu")
        out += [bytes.fromhex(plain)] if isinstance(plain, str) else []
    return out


SEEDS = _seeds()
OBJECTS = (
    CaptureObject(8, "0.0.1.0.0.255", 2),
    CaptureObject(1, "0.0.96.10.1.255", 2),
    CaptureObject(3, "1.0.1.8.0.255", 2),
    CaptureObject(3, "1.0.2.8.0.255", 2),
)
PLAN = Plan(
    "1.0.99.1.0.255",
    OBJECTS,
    {("1.0.1.8.0.255", 2): ScalerUnit(0, "Wh")},
    900,
    ClockRules(),
    status="0.0.96.10.1.255",
)


def frames_of(reader: FrameReader | WrapperReader | MbusReader, octets: bytes) -> None:
    reader.feed(octets)
    for _ in range(len(octets) + 2):
        try:
            if reader.next() is None:
                return
        except ProtocolError:
            if isinstance(reader, WrapperReader):
                return
    raise AssertionError("a reader does not come to an end")


def push_frames(octets: bytes) -> None:
    """A HAN port in every framing, and what comes out of it."""
    for framing in ("", "serial", "hdlc", "mbus", "wrapper"):
        reader = PushFrames(framing)
        try:
            for envelope in reader.feed(octets):
                push.read(envelope.apdu)
        except ProtocolError:
            continue


def blocks(octets: bytes) -> None:
    """A general block transfer, each block of which is one of the pieces."""
    assembler = BlockAssembler(4096)
    for at in range(0, len(octets), 16):
        block = apdu.decode(b"\xe0" + octets[at : at + 16])
        assert isinstance(block, apdu.GeneralBlockTransfer)
        assembler.take(block)


def link(octets: bytes) -> None:
    """A link that is connecting, and one that waits for an answer."""
    for state in (State.CONNECTING, State.CONNECTED):
        sides = Link(client_address(16), server_address(1))
        sides.connect()
        if state is State.CONNECTED:
            sides.feed(bytes.fromhex("7ea00a2103737a6b7e"))
            sides.feed(b"")
        if sides.state is State.CONNECTED:
            sides.send(b"GET")
        try:
            sides.feed(octets)
        finally:
            assert len(sides.outgoing()) <= 64 * (len(octets) + 8)


DECODERS: dict[str, Callable[[bytes], object]] = {
    "axdr": axdr.decode_whole,
    "axdr-skip": axdr.skip,
    "apdu": apdu.decode,
    "acse": acse.decode,
    "initiate": acse.decode_initiate,
    "body": bodies.decode_body,
    "peek": lambda o: ciphering.peek(o).open(CONTEXT, bytes(8)),
    "peek-signed": general.peek_signed,
    "header": lambda o: general.read_key_info(o, general.read_header(o)[1]),
    "curve-point": lambda o: curves.received_key(1 + o[0] % 2 if o else 1, o),
    "open": lambda o: CONTEXT.open(bytes(8), o),
    "push": push.read,
    "datagram": push.open_datagram,
    "parameters": parse_parameters,
    "hdlc": lambda o: frames_of(FrameReader(), o),
    "wrapper": lambda o: frames_of(WrapperReader(), o),
    "mbus": lambda o: frames_of(MbusReader(), o),
    "link": link,
    "push-frames": push_frames,
    "blocks": blocks,
    "datetime": lambda o: [decode_datetime(o[:12], ClockRules(sign)) for sign in (-1, 1)],
    "capture-objects": capture_objects,
    "scalers": lambda o: scaler_row(o, OBJECTS),
    "number": whole_number,
    "text": text_of,
    "objects": lambda o: object_list(axdr.decode_whole(o).plain()),
    "profile": lambda o: PLAN.decode(o),
    "names": push.names,
    "mode-e": speed_of,
    "decode": lambda o: decode([o]),
    "decode-keys": lambda o: decode([o], [Keys(KEY, KEY), Keys(KEY)], [bytes(8)]),
    "decode-lines": lambda o: decode([o[: len(o) // 2], o[len(o) // 2 :]]),
}
