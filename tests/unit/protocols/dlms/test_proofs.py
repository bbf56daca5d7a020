"""The proofs of HLS 2, 3, 4 and 6, against other implementations of the same functions."""

from __future__ import annotations

import hashlib

import pytest

from edge_core.domain import Secret
from edge_core.errors import LocalProtocolError, TagInvalid
from edge_core.protocols.dlms import proofs
from edge_core.protocols.dlms.codes import Mechanism

CLIENT, SERVER = b"CLIENT01", b"METER001"


def prove(mechanism: Mechanism, secret: bytes, received: bytes, sent: bytes = b"") -> bytes:
    return proofs.prove(mechanism, Secret(secret), CLIENT, SERVER, received, sent)


def test_hls2_is_aes_of_the_challenge() -> None:
    """FIPS 197, appendix C.1."""
    secret = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
    challenge = bytes.fromhex("00112233445566778899aabbccddeeff")
    assert prove(Mechanism.HLS2, secret, challenge).hex() == "69c4e0d86a7b0430d8cdb78070b4c55a"
    assert len(prove(Mechanism.HLS2, b"short", b"17 octets of text")) == 32
    with pytest.raises(LocalProtocolError, match="31 octets") as refused:
        prove(Mechanism.HLS2, b"a secret of more than 16 octets", b"challenge")
    assert "a secret of" not in str(refused.value)


def test_the_hashes() -> None:
    # md5sum and sha1sum of "challengesecret"
    md5 = prove(Mechanism.HLS3_MD5, b"secret", b"challenge")
    assert md5.hex() == "3956ed0865d1cd94c99f8e01c3988788"
    sha1 = prove(Mechanism.HLS4_SHA1, b"secret", b"challenge")
    assert sha1.hex() == "c08793ee9a640a2cbb497d0b0395ff9948a1c25f"
    sha256 = prove(Mechanism.HLS6_SHA256, b"secret", b"stoc", b"ctos")
    assert sha256 == hashlib.sha256(b"secret" + CLIENT + SERVER + b"stoc" + b"ctos").digest()


@pytest.mark.parametrize(
    "mechanism",
    [Mechanism.HLS2, Mechanism.HLS3_MD5, Mechanism.HLS4_SHA1, Mechanism.HLS6_SHA256],
)
def test_each_side_proves_over_what_it_received(mechanism: Mechanism) -> None:
    secret = Secret(b"sixteen octets !")
    of_client = proofs.prove(mechanism, secret, CLIENT, SERVER, b"from server", b"from client")
    of_server = proofs.prove(mechanism, secret, SERVER, CLIENT, b"from client", b"from server")
    assert of_client != of_server
    proofs.same(of_client, of_client)
    with pytest.raises(TagInvalid):
        proofs.same(of_client, of_server)


@pytest.mark.parametrize(
    "mechanism", [Mechanism.NONE, Mechanism.LLS, Mechanism.HLS5_GMAC, Mechanism.HLS7_ECDSA]
)
def test_the_others_prove_nothing_by_a_secret(mechanism: Mechanism) -> None:
    with pytest.raises(LocalProtocolError, match="proves nothing"):
        prove(mechanism, b"secret", b"challenge")
