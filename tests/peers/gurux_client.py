# SPDX-License-Identifier: GPL-2.0-only
#
# This program imports gurux-dlms, which is licensed under the GNU General Public License, version 2. It is a test
# program of its own, started as a separate process; it is no part of the opendcu distribution.
"""Reads a meter with the gurux-dlms client (1.0.203) and prints one JSON document as the last line.

usage: gurux_client.py JOB|[JOB, ...]     JOB: {"host", "port", "framing": "wrapper"|"hdlc", "server": physical address, "public": 16,
    "client": 48, "security": "lls"|"hls2"|...|"hls7", "suite": 0|1|2, "ciphered": bool, "password", "guek", "gak", "hls",
    "sign": our private key, "meter_sign": the meter's public one, "counter": OBIS, "access": bool, "registers": [OBIS], "profiles": [OBIS], "from": s, "to": s, "east": bool, "list": bool, "dedicated": hex or ""}
Date-times are compared by their octets, so that the sign of the deviation is this program's business, not gurux's.
"""

import contextlib
import datetime as dt
import json
import os
import socket
import sys

from gurux_dlms import GXByteBuffer, GXDateTime, GXReplyData
from gurux_dlms.ecdsa.GXPrivateKey import GXPrivateKey
from gurux_dlms.ecdsa.GXPublicKey import GXPublicKey
from gurux_dlms.enums import Authentication, Conformance, DataType, InterfaceType, Security
from gurux_dlms.enums.AccessServiceCommandType import AccessServiceCommandType
from gurux_dlms.GXDLMSAccessItem import GXDLMSAccessItem
from gurux_dlms.objects import GXDLMSClock, GXDLMSData, GXDLMSProfileGeneric, GXDLMSRegister
from gurux_dlms.objects.enums import SecuritySuite
from gurux_dlms.secure import GXDLMSSecureClient

JOB = {}
MECHANISMS = {
    "lls": Authentication.LOW,
    "hls2": Authentication.HIGH,
    "hls3": Authentication.HIGH_MD5,
    "hls4": Authentication.HIGH_SHA1,
    "hls5": Authentication.HIGH_GMAC,
    "hls6": Authentication.HIGH_SHA256,
    "hls7": Authentication.HIGH_ECDSA,
}


def ciphered():
    return JOB.get("ciphered", JOB["security"] == "hls5")


def framing():
    return InterfaceType.HDLC if JOB.get("framing") == "hdlc" else InterfaceType.WRAPPER


class Link:
    """One connection, one client, one question at a time."""

    def __init__(self, client):
        self.client = client
        self.socket = socket.create_connection((JOB["host"], JOB["port"]), 5)
        self.blocks = 0

    def ask(self, messages):
        reply = GXReplyData()
        for message in messages if isinstance(messages, list) else [messages]:
            if not message:
                continue
            reply.clear()
            self.exchange(message, reply)
            while reply.isMoreData():
                self.blocks += 1
                self.exchange(self.client.receiverReady(reply), reply)
        return reply

    def exchange(self, message, reply):
        self.socket.sendall(bytes(message))
        buffer, notify = GXByteBuffer(), GXReplyData()
        while True:
            chunk = self.socket.recv(65536)
            if not chunk:
                raise ConnectionError("the meter hung up")
            buffer.set(chunk)
            with (
                open(os.devnull, "w") as null,
                contextlib.redirect_stdout(null),
            ):  # it prints when it deciphers
                if self.client.getData(buffer, reply, notify):
                    break
        if reply.error:
            raise OSError(f"data-access-result {reply.error}")

    def associate(self):
        if framing() == InterfaceType.HDLC:
            self.client.parseUAResponse(self.ask(self.client.snrmRequest()).data)
        self.client.parseAareResponse(self.ask(self.client.aarqRequest()).data)
        if self.client.getIsAuthenticationRequired():
            with (
                open(os.devnull, "w") as null,
                contextlib.redirect_stdout(null),
            ):  # it prints its keys
                request = self.client.getApplicationAssociationRequest()
            reply = self.ask(request)
            self.client.parseApplicationAssociationResponse(reply.data)
        return self

    def read(self, thing, attribute):
        return self.client.updateValue(
            thing, attribute, self.ask(self.client.read(thing, attribute)).value
        )

    def close(self):
        if framing() == InterfaceType.HDLC:
            with contextlib.suppress(Exception):
                self.ask(self.client.disconnectRequest())
        self.socket.close()


def server_address():
    return (
        1
        if framing() == InterfaceType.WRAPPER
        else GXDLMSSecureClient.getServerAddress(1, JOB["server"])
    )


def public_client():
    return GXDLMSSecureClient(
        True, JOB["public"], server_address(), Authentication.NONE, None, framing()
    )


def full_client(counter):
    password = JOB["password"].encode() if JOB["security"] == "lls" else bytes.fromhex(JOB["hls"])
    if JOB["security"] in ("hls5", "hls7"):
        password = None
    c = GXDLMSSecureClient(
        True, JOB["client"], server_address(), MECHANISMS[JOB["security"]], password, framing()
    )
    if JOB.get("access"):
        c.proposedConformance |= Conformance.ACCESS
    c.ciphering.systemTitle = b"GRX00001"
    c.ciphering.securitySuite = SecuritySuite(JOB.get("suite", 0))
    if JOB["security"] == "hls7":
        c.ciphering.signingKeyPair = (
            GXPublicKey.fromRawBytes(b"\x04" + bytes.fromhex(JOB["meter_sign"])),
            GXPrivateKey.fromRawBytes(bytes.fromhex(JOB["sign"])),
        )
    if ciphered():
        c.ciphering.security = Security.AUTHENTICATION_ENCRYPTION
        c.ciphering.blockCipherKey = bytearray.fromhex(JOB["guek"])
        c.ciphering.authenticationKey = bytearray.fromhex(JOB["gak"])
        c.ciphering.invocationCounter = counter + 1
        if JOB.get("dedicated"):
            c.ciphering.dedicatedKey = bytearray.fromhex(JOB["dedicated"])
    return c


def octets(cell):
    """The 12 octets of a clock cell, as hex; gurux may have turned them into a date already."""
    if isinstance(cell, (bytes, bytearray)):
        return bytes(cell).hex()
    value = cell.value if isinstance(cell, GXDateTime) else cell
    return value.replace(tzinfo=None).isoformat()


def plain(cell):
    if isinstance(cell, (bytes, bytearray)):
        return bytes(cell).hex()
    if isinstance(cell, list):
        return [plain(c) for c in cell]
    if isinstance(cell, (dt.datetime, GXDateTime)):
        return octets(cell)
    return cell if cell is None or isinstance(cell, (bool, int, float)) else str(cell)


def local(at):
    offset = dt.timezone(dt.timedelta(minutes=JOB["offset"]))
    return dt.datetime.fromtimestamp(at, offset)


def rows(link, profile):
    return [[octets(r[0]), *(plain(c) for c in r[1:])] for r in profile.buffer]


def read_profile(link, obis):
    profile = GXDLMSProfileGeneric(obis)
    for attribute in (3, 4, 5, 7, 8):
        link.read(profile, attribute)
    out = {
        "columns": [
            [int(o.objectType), o.logicalName, c.attributeIndex] for o, c in profile.captureObjects
        ],
        "period": profile.capturePeriod,
        "in_use": profile.entriesInUse,
        "capacity": profile.profileEntries,
    }
    if obis.split(".")[2] in ("94",):
        link.read(profile, 2)
        return out | {"rows": [plain(r) for r in profile.buffer]}
    link.client.updateValue(
        profile,
        2,
        link.ask(link.client.readRowsByRange(profile, local(JOB["from"]), local(JOB["to"]))).value,
    )
    out["rows"] = rows(link, profile)
    profile.buffer = []
    link.read(profile, 2)
    out["whole"] = rows(link, profile)
    profile.buffer = []
    link.client.updateValue(profile, 2, link.ask(link.client.readRowsByEntry(profile, 2, 3)).value)
    out["entries"] = rows(link, profile)
    return out


def main():
    public = Link(public_client()).associate()
    counter = public.read(GXDLMSData(JOB["counter"]), 2)
    out = {
        "counter": counter,
        "serial": bytes(public.read(GXDLMSData("0.0.96.1.0.255"), 2)).decode(),
    }
    public.close()
    link = Link(full_client(counter)).associate()
    clock = GXDLMSClock()
    link.read(clock, 2)
    out["clock"] = clock.time.value.replace(tzinfo=None).isoformat()
    out["registers"] = {}
    for obis in JOB["registers"]:
        register = GXDLMSRegister(obis)
        link.read(register, 3)
        reply = link.ask(link.client.read(register, 2))
        out["registers"][obis] = [reply.value, round(register.scaler, 6), int(register.unit)]
    out["profiles"] = {obis: read_profile(link, obis) for obis in JOB["profiles"]}
    if JOB.get("list"):
        a, b = GXDLMSRegister(JOB["registers"][0]), GXDLMSData("0.0.96.1.0.255")
        values = []
        for messages in link.client.readList([(a, 2), (b, 2)]):
            values += link.ask(messages).value
        out["list"] = [plain(value) for value in values]
    if JOB.get("access"):
        items = [
            GXDLMSAccessItem(AccessServiceCommandType.GET, GXDLMSRegister(obis), 2)
            for obis in JOB["registers"]
        ] + [GXDLMSAccessItem(AccessServiceCommandType.GET, GXDLMSData("0.0.96.1.0.255"), 2)]
        reply = link.ask(link.client.accessRequest(None, items))
        link.client.parseAccessResponse(items, reply.data)
        out["access"] = [[plain(item.value), int(item.error)] for item in items]
    if JOB.get("set_clock"):
        clock.time = GXDateTime(local(JOB["set_clock"]))
        link.ask(link.client.write(clock, 2))
        link.read(clock, 2)
        out["clock_after"] = clock.time.value.replace(tzinfo=None).isoformat()
    out["blocks"] = link.blocks
    with contextlib.suppress(Exception):
        link.ask(link.client.releaseRequest())
    link.close()
    if ciphered():
        out["replayed"] = "refused"
        with contextlib.suppress(Exception):
            Link(full_client(counter)).associate()
            out["replayed"] = "accepted"
    return out


DataType  # noqa: B018 imported for readers who extend this with writes of other types
WORK = json.loads(sys.argv[1])
RESULTS = []
for JOB in WORK if isinstance(WORK, list) else [WORK]:  # noqa: B007 what all of this reads
    RESULTS.append(main())
print(json.dumps(RESULTS if isinstance(WORK, list) else RESULTS[0], default=str))
