"""Our client against a meter made of gurux-dlms: suites 0 to 2, HLS 3 to 7, an agreed key. Nothing of ours in the peer."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_core.domain import Secret
from edge_core.protocols.dlms import axdr, general
from edge_core.protocols.dlms.association import Association
from edge_core.protocols.dlms.codes import Mechanism
from edge_core.protocols.dlms.cosem import Attribute
from edge_core.protocols.dlms.refusals import ProofRefused
from edge_core.protocols.dlms.security import AUTHENTICATED_ENCRYPTED, SecurityContext
from edge_core.protocols.dlms.terms import Terms
from simulators.dlms.meter import Keys
from simulators.dlms.suites import public

pytestmark = [pytest.mark.integration, pytest.mark.peer]
PEER = Path(__file__).parents[2] / "peers" / "gurux_meter.py"
VALUE = 123_456_789
REGISTER = Attribute(3, "1.0.1.8.0.255", 2)


MEETINGS = (
    (0, "hls3", False),
    (0, "hls4", False),
    (0, "hls5", True),
    (1, "hls5", True),
    (2, "hls5", True),
    (2, "hls6", True),
    (1, "hls7", True),
)


def job(suite: int, security: str, *, ciphered: bool) -> dict[str, Any]:
    keys = Keys.derive("GRX1", 1, suite)
    return {
        "suite": suite,
        "security": security,
        "ciphered": ciphered,
        "guek": keys.guek.hex(),
        "gak": keys.gak.hex(),
        "hls": keys.hls.hex(),
        "sign": keys.sign.hex(),
        "agree": keys.agree.hex(),
        "client_sign": public(suite, keys.client_sign).hex() if suite else "",
        "client_agree": public(suite, keys.client_agree).hex() if suite else "",
        "value": VALUE,
    }


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[tuple[int, str, bool], int]]:
    """One process of the peer, a meter a port."""
    jobs = [job(suite, security, ciphered=ciphered) for suite, security, ciphered in MEETINGS]
    with subprocess.Popen(
        [sys.executable, str(PEER), json.dumps(jobs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield dict(zip(MEETINGS, json.loads(process.stdout.readline()), strict=True))
        process.stdin.close()


class GuruxMeter:
    """A connection to one of the peer's meters."""

    def __init__(self, ports: dict[Any, int], suite: int, security: str, *, ciphered: bool) -> None:
        self.suite, self.security, self.ciphered = suite, security, ciphered
        self.keys = Keys.derive("GRX1", 1, suite)
        self.port = ports[suite, security, ciphered]

    async def __aenter__(self) -> GuruxMeter:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    def association(self, **changes: Any) -> Association:
        keys, counters = self.keys, itertools.count(5_000)
        terms: dict[str, Any] = {
            "title": b"ODCtest1",
            "mechanism": Mechanism(int(self.security[3:])),
            "level": AUTHENTICATED_ENCRYPTED if self.ciphered else 0,
            "ciphering": "glo" if self.ciphered else "none",
        }
        pairs = None
        if self.suite:
            pairs = general.key_pairs(
                self.suite,
                os.urandom,
                sign=Secret(keys.client_sign),
                agree=Secret(changes.pop("agree", keys.client_agree)),
                meter_sign=Secret(public(self.suite, keys.sign)),
                meter_agree=Secret(public(self.suite, keys.agree)),
            )
        return Association(
            Terms(**terms | changes),
            next_counter=lambda: next(counters),
            context=SecurityContext(self.suite, Secret(keys.guek), Secret(keys.gak)),
            secret=Secret(keys.hls),
            pairs=pairs,
        )

    async def run(self, exchange: Any) -> Any:
        request = next(exchange)
        while True:
            self.writer.write(struct.pack(">HHHH", 1, 48, 1, len(request)) + request)
            head = await self.reader.readexactly(8)
            reply = await self.reader.readexactly(int.from_bytes(head[6:], "big"))
            try:
                request = exchange.send(reply)
            except StopIteration as done:
                return done.value


Ports = dict[tuple[int, str, bool], int]


@pytest.mark.parametrize(("suite", "security", "ciphered"), MEETINGS)
async def test_our_client_reads_a_meter_made_of_gurux(
    ports: Ports, suite: int, security: str, ciphered: bool
) -> None:
    async with GuruxMeter(ports, suite, security, ciphered=ciphered) as meter:
        association = meter.association()
        await meter.run(association.open(os.urandom(16)))
        assert association.meter_title == b"GRXMETER"
        for _ in range(2):
            data = await meter.run(association.get(REGISTER))
            assert axdr.decode_whole(data).value == VALUE


@pytest.mark.parametrize("suite", [1, 2])
async def test_general_ciphering_with_an_agreed_key(ports: Ports, suite: int) -> None:
    """The header in the AAD, the curve, the KDF and its parties: by gurux and hashlib on the other side."""
    async with GuruxMeter(ports, suite, "hls5", ciphered=True) as meter:
        association = meter.association(ciphering="general-ciphering", key_info="static")
        await meter.run(association.open(os.urandom(16)))
        data = await meter.run(association.get(REGISTER))
        assert axdr.decode_whole(data).value == VALUE


async def test_the_wrong_secret_is_told_from_the_right_one(ports: Ports) -> None:
    async with GuruxMeter(ports, 0, "hls3", ciphered=False) as meter:
        meter.keys = Keys.derive("another", 1, 0)
        association = meter.association()
        with pytest.raises(ProofRefused):
            await meter.run(association.open(os.urandom(16)))
