# SPDX-License-Identifier: GPL-2.0-only
#
# This program imports gurux-dlms, which is licensed under the GNU General Public License, version 2. It is a test
# program of its own, started as a separate process; it is no part of the opendcu distribution.
"""A meter of one register, made from the encoders, ciphers, hashes and curves of gurux-dlms 1.0.203.

Its server class does not run in Python; this takes GXCiphering, GXSecure and GXEcdsa, which do, and nothing of OpenDCU.
usage: gurux_meter.py [JOB, ...]     JOB, one a meter: {"suite", "security": "hls3"..."hls7", "ciphered": bool, "guek", "gak", "hls",
    "sign": the meter's private signing key, "client_sign": the client's public one, "agree": the meter's private
    agreement key, "client_agree": the client's public one, "value": int}
Prints their ports, serves one connection after the other at each until standard input ends. A general-ciphering is answered by
one under the static key agreement, with the invocation counter that gurux takes from the transaction-id.
"""

import contextlib
import hashlib
import json
import os
import socket
import struct
import sys
import threading

from gurux_dlms import GXByteBuffer
from gurux_dlms.AesGcmParameter import AesGcmParameter
from gurux_dlms.CountType import CountType
from gurux_dlms.ecdsa._GXShamirs import _GXShamirs
from gurux_dlms.ecdsa.enums.Ecc import Ecc
from gurux_dlms.ecdsa.GXCurve import GXCurve
from gurux_dlms.ecdsa.GXEccPoint import GXEccPoint
from gurux_dlms.ecdsa.GXEcdsa import GXEcdsa
from gurux_dlms.ecdsa.GXPrivateKey import GXPrivateKey
from gurux_dlms.ecdsa.GXPublicKey import GXPublicKey
from gurux_dlms.enums import Authentication, Security
from gurux_dlms.GXCiphering import GXCiphering
from gurux_dlms.GXDLMSChippering import GXDLMSChippering
from gurux_dlms.GXDLMSSettings import GXDLMSSettings
from gurux_dlms.GXSecure import GXSecure
from gurux_dlms.objects.enums import SecuritySuite

TITLE = b"GRXMETER"
MECHANISMS = {
    "hls3": Authentication.HIGH_MD5,
    "hls4": Authentication.HIGH_SHA1,
    "hls5": Authentication.HIGH_GMAC,
    "hls6": Authentication.HIGH_SHA256,
    "hls7": Authentication.HIGH_ECDSA,
}
GRANTED = 0x400000 | 0x001010  # general-protection, block-get, get


def tlv(tag, body):
    buffer = GXByteBuffer()
    buffer.setUInt8(tag)
    from gurux_dlms.internal._GXCommon import _GXCommon

    _GXCommon.setObjectCount(len(body), buffer)
    return bytes(buffer.array()) + body


def take(octets_, at):
    """A BER or A-XDR length-prefixed field."""
    size, at = octets_[at], at + 1
    if size & 0x80:
        more = size & 0x7F
        size, at = int.from_bytes(octets_[at : at + more], "big"), at + more
    return octets_[at : at + size], at + size


def fields(body):
    found, at = {}, 0
    while at < len(body):
        tag = body[at]
        found[tag], at = take(body, at + 1)
    return found


class Meter:
    def __init__(self, job):
        self.job = job
        self.cipher = GXCiphering(TITLE)
        self.cipher.systemTitle = bytearray(TITLE)
        self.cipher.securitySuite = SecuritySuite(self.job["suite"])
        self.cipher.blockCipherKey = self.octets("guek")
        self.cipher.authenticationKey = self.octets("gak")
        self.settings = GXDLMSSettings(True, None)
        self.settings.cipher = self.cipher
        self.settings.authentication = MECHANISMS[self.job["security"]]
        if self.job["security"] == "hls7":
            self.cipher.signingKeyPair = (
                GXPublicKey.fromRawBytes(b"\4" + self.octets("client_sign")),
                GXPrivateKey.fromRawBytes(self.octets("sign")),
            )
        self.counter = 1_000
        self.client = b""
        self.c_to_s = self.s_to_c = b""

    def octets(self, name):
        return bytearray.fromhex(self.job[name])

    # --- ciphering, all of it by gurux

    def parameters(self, tag, title):
        p = AesGcmParameter(
            tag, bytearray(title), self.cipher.blockCipherKey, self.cipher.authenticationKey
        )
        p.security = Security.AUTHENTICATION_ENCRYPTION
        p.securitySuite = self.cipher.securitySuite
        return p

    def seal(self, tag, plain):
        self.counter += 1
        p = self.parameters(tag, TITLE)
        p.invocationCounter = self.counter
        return bytes(GXCiphering.encrypt(p, bytearray(plain)))

    def open(self, apdu):
        """gurux deciphers without a look at the tag; so the plaintext is sealed again, and must give the same octets."""
        p = self.parameters(0, self.client)
        plain = bytes(GXCiphering.decrypt(self.settings, p, GXByteBuffer(bytearray(apdu))))
        again = self.parameters(apdu[0], self.client)
        again.invocationCounter = p.invocationCounter
        if bytes(GXCiphering.encrypt(again, bytearray(plain))) != apdu:
            raise ConnectionError("the tag does not verify")
        return plain

    # --- the association

    def associate(self, apdu):
        body, _ = take(apdu, 1)
        found = fields(body)
        self.client = fields(found[0xA6])[0x04] if 0xA6 in found else b""
        self.c_to_s = fields(found[0xAC])[0x80]
        self.s_to_c = os.urandom(16)
        user = fields(found[0xBE])[0x04]
        if self.job["ciphered"]:
            user = self.open(user)
        assert user[:1] == b"\x01", user.hex()
        answer = b"\x08\x00\x06\x5f\x1f\x04\x00" + GRANTED.to_bytes(3, "big") + b"\x04\x00\x00\x07"
        if self.job["ciphered"]:
            answer = self.seal(0x28, answer)
        oid = b"\x60\x85\x74\x05\x08"
        return tlv(
            0x61,
            tlv(0xA1, tlv(0x06, oid + b"\x01" + (b"\x03" if self.job["ciphered"] else b"\x01")))
            + tlv(0xA2, b"\x02\x01\x00")
            + tlv(0xA3, tlv(0xA1, b"\x02\x01\x0e"))
            + tlv(0xA4, tlv(0x04, TITLE))
            + b"\x88\x02\x07\x80"
            + tlv(0x89, oid + b"\x02" + bytes([int(MECHANISMS[self.job["security"]])]))
            + tlv(0xAA, tlv(0x80, self.s_to_c))
            + tlv(0xBE, tlv(0x04, answer)),
        )

    def proof(self, own, peer, received, sent, counter):
        """f(challenge) of who bears the title `own`, by gurux's own function."""
        secret = bytearray(self.octets("hls"))
        if self.job["security"] == "hls5":
            secret = bytearray(own)
        elif self.job["security"] == "hls6":
            secret = secret + own + peer + received + sent
        return bytes(
            GXSecure.secure(self.settings, self.cipher, counter, bytearray(received), secret)
        )

    def prove(self, action):
        token, _ = take(action, 14)
        text = self.client + TITLE + self.s_to_c + self.c_to_s
        if self.job["security"] == "hls7":
            good = GXEcdsa(self.cipher.signingKeyPair[0]).verify(token, bytearray(text))
            mine = GXEcdsa(self.cipher.signingKeyPair[1]).sign(
                bytearray(TITLE + self.client + self.c_to_s + self.s_to_c)
            )
        else:
            counter = int.from_bytes(token[1:5], "big") if self.job["security"] == "hls5" else 0
            good = token == self.proof(self.client, TITLE, self.s_to_c, self.c_to_s, counter)
            self.counter += 1
            mine = self.proof(TITLE, self.client, self.c_to_s, self.s_to_c, self.counter)
        if not good:
            return b"\xc7\x01" + action[2:3] + b"\x03\x00"
        return b"\xc7\x01" + action[2:3] + b"\x00\x01\x00" + tlv(0x09, bytes(mine))

    def service(self, plain):
        if plain[0] == 0xC3:
            return self.prove(plain)
        assert plain[:2] == b"\xc0\x01", plain.hex()
        return b"\xc4\x01" + plain[2:3] + b"\x00\x06" + self.job["value"].to_bytes(4, "big")

    # --- general-ciphering under an agreed key

    def message_key(self, transaction, originator, recipient):
        """Static unified model: gurux multiplies the points, the hash is the library's."""
        scheme = Ecc.P256 if self.job["suite"] == 1 else Ecc.P384
        size = 32 if self.job["suite"] == 1 else 48
        raw = self.octets("client_agree")
        peer = GXEccPoint(int.from_bytes(raw[:size], "big"), int.from_bytes(raw[size:], "big"))
        shared = GXEccPoint(0, 0)
        number = int.from_bytes(self.octets("agree"), "big")
        _GXShamirs.pointMulti(GXCurve(scheme), shared, peer, number)
        text = b"\0\0\0\1" + int(shared.x).to_bytes(size, "big")
        text += bytes.fromhex("608574050803") + bytes([self.job["suite"] - 1])
        text += originator + b"\x08" + transaction + recipient
        digest = (hashlib.sha256 if self.job["suite"] == 1 else hashlib.sha384)(text).digest()
        return bytearray(digest[: 16 * self.job["suite"]])

    def addressed(self, apdu):
        parts, at = [], 1
        for _ in range(5):
            part, at = take(apdu, at)
            parts.append(part)
        transaction, originator, recipient = parts[:3]
        assert (originator, recipient) == (self.client, TITLE)
        assert apdu[at : at + 5] == b"\1\2\1\2\0", apdu[at : at + 5].hex()
        body, _ = take(apdu, at + 5)
        key = self.message_key(transaction, originator, recipient)
        plain = bytes(self.general(key, originator, recipient, transaction, body))
        answer = self.service(plain)
        key = self.message_key(transaction, TITLE, self.client)
        # gurux takes the transaction-id from the invocation counter, so the counter comes of the transaction-id
        p = self.parameters(0xDD, TITLE)
        p.blockCipherKey, p.recipientSystemTitle = key, bytearray(self.client)
        p.invocationCounter = int.from_bytes(transaction, "big")
        p.type_ = CountType.DATA | CountType.TAG
        sealed = bytes(GXDLMSChippering.encryptAesGcm(p, bytearray(answer)))
        head = b"".join(tlv(8, part)[1:] for part in (transaction, TITLE, self.client, b"", b""))
        control = bytes([0x30 | self.job["suite"]]) + transaction[4:]
        return b"\xdd" + head + b"\1\2\1\2\0" + tlv(0, control + sealed)[1:]

    def general(self, key, originator, recipient, transaction, body):
        """Counter mode under gurux's cipher; our counter is no transaction-id, so its AAD cannot be gurux's."""
        p = self.parameters(0, originator)
        p.blockCipherKey, p.type_ = key, CountType.DATA
        p.invocationCounter = int.from_bytes(body[1:5], "big")
        return GXDLMSChippering.encryptAesGcm(p, bytearray(body[5:-12]))

    def handle(self, apdu):
        if apdu[0] == 0x60:
            return self.associate(apdu)
        if apdu[0] == 0x62:
            return b"\x63\x03\x80\x01\x00"
        if apdu[0] == 0xDD:
            return self.addressed(apdu)
        if not self.job["ciphered"]:
            return self.service(apdu)
        plain = self.open(apdu)
        return self.seal({0xC0: 0xCC, 0xC3: 0xCF}[plain[0]], self.service(plain))


def exactly(link, count):
    whole = b""
    while len(whole) < count:
        part = link.recv(count - len(whole))
        if not part:
            raise ConnectionError
        whole += part
    return whole


def serve(link, job):
    meter = Meter(job)
    with link, contextlib.suppress(ConnectionError):
        while True:
            _, source, destination, size = struct.unpack(">HHHH", exactly(link, 8))
            apdu = exactly(link, size)
            with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
                answer = meter.handle(apdu)  # gurux prints its keys
            link.sendall(struct.pack(">HHHH", 1, destination, source, len(answer)) + answer)


def accept(listener, job):
    while True:
        serve(listener.accept()[0], job)


def main():
    ports = []
    for job in json.loads(sys.argv[1]):
        listener = socket.create_server(("127.0.0.1", 0))
        ports.append(listener.getsockname()[1])
        threading.Thread(target=accept, args=(listener, job), daemon=True).start()
    print(json.dumps(ports), flush=True)
    sys.stdin.read()


main()
