# SPDX-License-Identifier: GPL-2.0-only
#
# This program imports gurux-dlms, which is licensed under the GNU General Public License, version 2. It is a benchmark
# program of its own, started as a separate process; it is no part of the opendcu distribution.
"""The peer of round_5000.py: HLS 5 association, clock, the last hour of the load profile, release; by gurux-dlms.

usage: gurux_round.py FLEET_FOLDER COUNT     prints {"read", "wall_s", "cpu_s"}; imports and the counter are not counted
"""

import contextlib
import csv
import datetime as dt
import json
import os
import socket
import sys
import time
import tomllib
from pathlib import Path

from gurux_dlms import GXByteBuffer, GXReplyData
from gurux_dlms.enums import Authentication, InterfaceType, Security
from gurux_dlms.objects import GXDLMSClock, GXDLMSData, GXDLMSProfileGeneric
from gurux_dlms.secure import GXDLMSSecureClient

FOLDER, COUNT = Path(sys.argv[1]), int(sys.argv[2])
KEYS = tomllib.loads((FOLDER / "keys.toml").read_text())
IST = dt.timezone(dt.timedelta(minutes=330))


class Link:
    """One connection, one client, one question at a time."""

    def __init__(self, client, address):
        host, _, port = address.rpartition(":")
        self.client, self.socket = client, socket.create_connection((host, int(port)), 5)
        self.client.parseAareResponse(self.ask(client.aarqRequest()).data)
        if client.getIsAuthenticationRequired():
            reply = self.ask(client.getApplicationAssociationRequest())
            client.parseApplicationAssociationResponse(reply.data)

    def ask(self, messages):
        reply = GXReplyData()
        for message in messages:
            reply.clear()
            self.exchange(message, reply)
            while reply.isMoreData():
                self.exchange(self.client.receiverReady(reply), reply)
        return reply

    def exchange(self, message, reply):
        self.socket.sendall(bytes(message))
        buffer, notify = GXByteBuffer(), GXReplyData()
        while True:
            buffer.set(self.socket.recv(65536))
            if self.client.getData(buffer, reply, notify):
                break
        if reply.error:
            raise OSError(f"data-access-result {reply.error}")

    def read(self, thing, attribute):
        return self.client.updateValue(
            thing, attribute, self.ask(self.client.read(thing, attribute)).value
        )

    def close(self):
        with contextlib.suppress(Exception):
            self.ask(self.client.releaseRequest())
        self.socket.close()


def secure(meter, counter):
    client = GXDLMSSecureClient(
        True, int(meter["client"]), 1, Authentication.HIGH_GMAC, None, InterfaceType.WRAPPER
    )
    client.ciphering.security = Security.AUTHENTICATION_ENCRYPTION
    client.ciphering.systemTitle = b"GRX00001"
    client.ciphering.blockCipherKey = bytearray.fromhex(KEYS[meter["id"]]["guek"])
    client.ciphering.authenticationKey = bytearray.fromhex(KEYS[meter["id"]]["gak"])
    client.ciphering.invocationCounter = counter + 1
    return client


def main():
    with (FOLDER / "meters.csv").open() as file:
        meters = list(csv.DictReader(file))[:COUNT]
    profile, wall, cpu = GXDLMSProfileGeneric("1.0.99.1.0.255"), 0.0, 0.0
    for k, meter in enumerate(meters):
        public = GXDLMSSecureClient(True, 16, 1, Authentication.NONE, None, InterfaceType.WRAPPER)
        link = Link(public, meter["address"])
        counter = link.read(GXDLMSData("0.0.43.1.3.255"), 2)
        link.close()
        if k == 0:
            link = Link(secure(meter, counter), meter["address"])
            link.read(profile, 3)
            link.close()
            counter += 1000
        before, used = time.perf_counter(), time.process_time()
        link = Link(secure(meter, counter), meter["address"])
        link.read(GXDLMSClock(), 2)
        now = dt.datetime.now(IST)
        messages = link.client.readRowsByRange(profile, now - dt.timedelta(minutes=55), now)
        link.client.updateValue(profile, 2, link.ask(messages).value)
        assert profile.buffer
        profile.buffer = []
        link.close()
        wall += time.perf_counter() - before
        cpu += time.process_time() - used
    return {"read": len(meters), "wall_s": round(wall, 3), "cpu_s": round(cpu, 3)}


with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):  # it prints when it deciphers
    result = main()
print(json.dumps(result))
