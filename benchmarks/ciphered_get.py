"""What does one ciphered GET cost the client's CPU: build the request, check and open the answer?

Suite 0, authenticated and encrypted, in the wrapper; no sockets. The answers are made here before the clock starts,
each under the next counter. Ours is the whole association (state table, invoke-id, counter, protection) with the
wrapper around it. gurux-dlms (GPL-2.0) answers come as glo-get-response, dlms-cosem 21.3.2 (MIT) knows only
general-glo-ciphering; both run as processes of their own, dlms-cosem with its logging off.

usage: ciphered_get.py [--quick]
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from common import save, spread, table

EK = bytes.fromhex("000102030405060708090A0B0C0D0E0F")
AK = bytes.fromhex("D0D1D2D3D4D5D6D7D8D9DADBDCDDDEDF")
CLIENT_TITLE, METER_TITLE = b"ABCDEFGH", b"MTR00001"
VALUE = 1_000_000
PEERS = ("gurux-dlms", "dlms-cosem")
RUNS = 7


def length(n: int) -> bytes:
    return bytes([n]) if n < 128 else b"\x82" + n.to_bytes(2, "big")


def answer(counter: int, invoke: int, octets: int, *, general: bool) -> bytes:
    """A get-response in the wrapper: a double-long-unsigned, or an octet-string of so many octets."""
    data = (
        b"\x09" + length(octets) + bytes(octets) if octets else b"\x06" + VALUE.to_bytes(4, "big")
    )
    plain = b"\xc4\x01" + bytes([invoke]) + b"\x00" + data
    nonce = METER_TITLE + counter.to_bytes(4, "big")
    body = (
        b"\x30" + counter.to_bytes(4, "big") + AESGCM(EK).encrypt(nonce, plain, b"\x30" + AK)[:-4]
    )
    apdu = (b"\xdb\x08" + METER_TITLE if general else b"\xcc") + length(len(body)) + body
    return struct.pack(">HHHH", 1, 1, 48, len(apdu)) + apdu


def timed(one: Any, number: int) -> list[float]:
    """CPU seconds of one round trip, RUNS times; the calls are numbered through."""
    done = 0
    out = []
    for run in range(RUNS + 1):
        start = time.process_time()
        for i in range(done, done + number):
            one(i)
        if run:
            out.append((time.process_time() - start) / number)
        done += number
    return out


def ours(octets: int, number: int) -> list[float]:
    from edge_core.domain import Secret
    from edge_core.protocols.dlms.association import Association
    from edge_core.protocols.dlms.codes import Conformance, Mechanism
    from edge_core.protocols.dlms.cosem import Attribute
    from edge_core.protocols.dlms.security import AUTHENTICATED_ENCRYPTED, SecurityContext
    from edge_core.protocols.dlms.states import State
    from edge_core.protocols.dlms.terms import Terms
    from edge_core.protocols.dlms.wrapper import WrapperReader, wrap

    counters = iter(range(1, 1 << 31))
    context = SecurityContext(0, Secret(EK), Secret(AK))
    association = Association(
        Terms(CLIENT_TITLE, Mechanism.HLS5_GMAC, AUTHENTICATED_ENCRYPTED, "glo"),
        next_counter=lambda: next(counters),
        context=context,
    )
    association.state = State.READY  # as after AARQ and pass 3, which are not what is measured
    association.protection.meter_title = METER_TITLE
    association.negotiated = Conformance.GET
    attribute = Attribute(3, "1.0.1.8.0.255", 2)
    reader = WrapperReader()
    answers = [
        answer(i + 1, 0xC0 | (i + 1) & 15, octets, general=False)
        for i in range(number * (RUNS + 1))
    ]

    def one(i: int) -> None:
        exchange = association.get(attribute)
        wrap(48, 1, next(exchange))
        reader.feed(answers[i])
        wpdu = reader.next()
        assert wpdu is not None
        got = None
        try:
            exchange.send(wpdu.apdu)
        except StopIteration as done:
            got = done.value
        assert got is not None
        assert octets or got == b"\x06" + VALUE.to_bytes(4, "big")

    return timed(one, number)


def gurux(octets: int, number: int) -> list[float]:
    from gurux_dlms import GXByteBuffer, GXReplyData
    from gurux_dlms.ConnectionState import ConnectionState
    from gurux_dlms.enums import Authentication, Conformance, InterfaceType, Security
    from gurux_dlms.objects import GXDLMSRegister
    from gurux_dlms.secure import GXDLMSSecureClient

    client = GXDLMSSecureClient(True, 48, 1, Authentication.NONE, None, InterfaceType.WRAPPER)
    client.ciphering.security = Security.AUTHENTICATION_ENCRYPTION
    client.ciphering.systemTitle = CLIENT_TITLE
    client.ciphering.blockCipherKey = bytearray(EK)
    client.ciphering.authenticationKey = bytearray(AK)
    client.settings.sourceSystemTitle = METER_TITLE
    client.settings.negotiatedConformance = (
        Conformance.GET | Conformance.BLOCK_TRANSFER_WITH_GET_OR_READ
    )
    client.settings.connected = ConnectionState.HDLC | ConnectionState.DLMS
    register = GXDLMSRegister("1.0.1.8.0.255")
    answers = [answer(i + 1, 0xC1, octets, general=False) for i in range(number * (RUNS + 1))]

    def one(i: int) -> None:
        client.read(register, 2)
        reply = GXReplyData()
        client.getData(GXByteBuffer(answers[i]), reply)
        assert octets or reply.value == VALUE

    with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null):
        return timed(one, number)


def dlms_cosem(octets: int, number: int) -> list[float]:
    logging.disable(logging.CRITICAL)
    from dlms_cosem import cosem, enumerations
    from dlms_cosem import state as states
    from dlms_cosem.connection import DlmsConnection
    from dlms_cosem.protocol import xdlms
    from dlms_cosem.utils import parse_as_dlms_data
    from dlms_cosem.wrappers import WrapperHeader, WrapperProtocolDataUnit

    connection = DlmsConnection(
        client_system_title=CLIENT_TITLE,
        global_encryption_key=EK,
        global_authentication_key=AK,
        meter_system_title=METER_TITLE,
    )
    connection.state.current_state = states.READY
    attribute = cosem.CosemAttribute(
        interface=enumerations.CosemInterface.REGISTER,
        instance=cosem.Obis(1, 0, 1, 8, 0),
        attribute=2,
    )
    answers = [answer(i + 1, 0xC1, octets, general=True) for i in range(number * (RUNS + 1))]

    def one(i: int) -> None:
        out = connection.send(xdlms.GetRequestNormal(cosem_attribute=attribute))
        header = WrapperHeader(source_wport=48, destination_wport=1, length=len(out))
        WrapperProtocolDataUnit(out, header).to_bytes()
        came = answers[i]
        WrapperHeader.from_bytes(came[:8])
        connection.receive_data(came[8:])
        value = parse_as_dlms_data(connection.next_event().data)
        assert octets or value == VALUE

    return timed(one, number)


def peer(name: str, octets: int, number: int) -> list[float]:
    job = json.dumps({"peer": name, "octets": octets, "number": number})
    child = subprocess.run(
        [sys.executable, __file__, "--child", job], capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise SystemExit(f"{name}: {child.stderr}")
    return list(json.loads(child.stdout.splitlines()[-1]))


def main() -> None:
    quick = "--quick" in sys.argv
    results = []
    lines = [
        ["answer", "ours us", *(f"{name} us" for name in PEERS), *(f"x {name}" for name in PEERS)]
    ]
    for octets in (0, 1024):
        number = 200 if quick else 1000
        mine = ours(octets, number)
        peers = {name: peer(name, octets, max(20, number // 10)) for name in PEERS}
        median = statistics.median(mine)
        ratios = {name: round(statistics.median(s) / median, 1) for name, s in peers.items()}
        what = f"octet-string of {octets}" if octets else "double-long-unsigned"
        results.append(
            {
                "answer": what,
                "ours": spread(mine),
                "peers": {n: spread(s) for n, s in peers.items()},
                "times_faster": ratios,
            }
        )
        lines.append(
            [
                what,
                f"{median * 1e6:.2f}",
                *(f"{statistics.median(s) * 1e6:.0f}" for s in peers.values()),
                *(f"{r:.1f}" for r in ratios.values()),
            ]
        )
    print(table(lines))
    if not quick:
        print(save("ciphered_get", {"results": results}, "cryptography", "msgspec", *PEERS))


if __name__ == "__main__":
    if "--child" in sys.argv:
        work = json.loads(sys.argv[-1])
        run = {"gurux-dlms": gurux, "dlms-cosem": dlms_cosem}[work["peer"]]
        print(json.dumps(run(work["octets"], work["number"])))
    else:
        main()
