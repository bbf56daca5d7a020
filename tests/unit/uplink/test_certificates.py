"""Generations of certificates on disk: one step, no key lost, the old one kept until the new one has connected."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge_core import errors
from edge_core.uplink.certificates import Certificates, life_of

BEGINS = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LIFE = dt.timedelta(days=90)
CA = ec.generate_private_key(ec.SECP256R1())


def signed(request: bytes, serial: int = 1) -> bytes:
    """What the cloud makes of a request."""
    csr = x509.load_pem_x509_csr(request)
    assert csr.is_signature_valid
    issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "CA")])
    built = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(issuer)
        .public_key(csr.public_key())
        .serial_number(serial)
        .not_valid_before(BEGINS)
        .not_valid_after(BEGINS + LIFE)
    )
    return built.sign(CA, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "pki" / "gateway.crt", tmp_path / "pki" / "gateway.key")


def obtain(certificates: Certificates, serial: int) -> None:
    certificates.stage(signed(certificates.request("dcu-0001"), serial))


def serial_of(certificates: Certificates) -> str:
    life = certificates.life()
    assert life is not None
    return life.serial


def test_the_first_one_is_in_use_once_it_has_connected(certificates: Certificates) -> None:
    assert (certificates.current, certificates.next, certificates.life()) == (None, None, None)
    assert certificates.candidate() is None
    obtain(certificates, 1)
    assert certificates.current is None
    assert not certificates.ours
    shown = certificates.candidate()
    assert shown == certificates.next
    assert shown is not None
    assert certificates.proved(shown)
    assert certificates.ours
    assert certificates.next is None
    assert serial_of(certificates) == "1"
    assert stat.S_IMODE(certificates.named.key.stat().st_mode) == 0o600


def test_two_thirds_of_a_life(certificates: Certificates) -> None:
    obtain(certificates, 1)
    assert certificates.next is not None
    certificates.proved(certificates.next)
    life = certificates.life()
    assert life is not None
    assert life.renew_at == life.begins + LIFE.total_seconds() * 2 / 3
    assert not certificates.due(life.renew_at - 1)
    assert certificates.due(life.renew_at)
    obtain(certificates, 2)
    assert not certificates.due(life.renew_at)  # it is there, and has still to connect


def test_a_new_one_takes_turns_with_the_old_until_it_has_connected(
    certificates: Certificates,
) -> None:
    obtain(certificates, 1)
    assert certificates.next is not None
    certificates.proved(certificates.next)
    obtain(certificates, 2)
    turns = [certificates.candidate() for _ in range(4)]
    assert sorted(turns.count(pair) for pair in (certificates.current, certificates.next)) == [2, 2]
    old = certificates.current
    assert old is not None
    assert not certificates.proved(old)  # the old one connects: nothing changes
    assert serial_of(certificates) == "1"
    assert certificates.proved(certificates.next)
    assert serial_of(certificates) == "2"
    assert certificates.candidate() == certificates.current
    key = serialization.load_pem_private_key(certificates.named.key.read_bytes(), None)
    shown = x509.load_pem_x509_certificate(certificates.named.certificate.read_bytes())
    assert shown.public_key() == key.public_key()


def test_a_process_that_starts_anew_finds_what_was_there(
    certificates: Certificates,
) -> None:
    obtain(certificates, 1)
    again = Certificates(*certificates.named)
    assert again.next == certificates.next
    assert again.next is not None
    assert again.proved(again.next)
    assert Certificates(*certificates.named).ours


def test_a_key_survives_an_answer_that_never_came(certificates: Certificates) -> None:
    first = x509.load_pem_x509_csr(certificates.request("dcu-0001"))
    again = x509.load_pem_x509_csr(Certificates(*certificates.named).request("dcu-0001"))
    assert first.public_key() == again.public_key()
    assert b"PRIVATE" not in certificates.request("dcu-0001")


def test_another_key_or_no_certificate_is_refused(certificates: Certificates) -> None:
    with pytest.raises(errors.UplinkError, match="no certificate came"):
        certificates.stage(b"x")
    certificates.request("dcu-0001")
    with pytest.raises(errors.UplinkError, match="no certificate came"):
        certificates.stage(b"x")
    other = Certificates(*(p.with_name(f"other-{p.name}") for p in certificates.named))
    with pytest.raises(errors.UplinkError, match="another key than ours"):
        certificates.stage(signed(other.request("dcu-0002")))
    assert certificates.next is None


def test_one_that_never_connects_is_given_up_after_a_day(certificates: Certificates) -> None:
    obtain(certificates, 1)
    assert certificates.next is not None
    certificates.proved(certificates.next)
    obtain(certificates, 2)
    obtained_at = certificates.next.certificate.stat().st_mtime
    certificates.give_up(obtained_at + 3_600)
    assert certificates.next is not None
    certificates.give_up(obtained_at + 90_000)
    assert certificates.next is None
    assert serial_of(certificates) == "1"


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "pki").write_text("a file where a folder should be")
    certificates = Certificates(tmp_path / "pki" / "gateway.crt", tmp_path / "pki" / "gateway.key")
    with pytest.raises(errors.UplinkError, match="a folder of its own"):
        certificates.request("dcu-0001")
    with pytest.raises(errors.UplinkError, match="no certificate"):
        life_of(tmp_path / "pki")
