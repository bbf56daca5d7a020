"""The gateway's certificate and key on disk: generations side by side, switched in one step, the old one kept meanwhile.

    gateway.crt -> gateway.pki/current/cert.pem        what `[uplink] cert_file` and `key_file` name
    gateway.key -> gateway.pki/current/key.pem
    gateway.pki/1/ 2/ ...                              cert.pem and key.pem (0600) of one generation
    gateway.pki/current -> 1                           replaced by one rename: certificate and key change together
    gateway.pki/next -> 2                              a new one that has not connected yet
    gateway.pki/draft.pem                              the key of a request under way (0600)

Keys are made here and leave never: only a signing request goes out. A new certificate is tried at every other attempt
to connect, the old one at those between, and becomes `current` when it has connected: whatever is wrong with it, the
way to the cloud stays. Files that a person put there are adopted as a generation at the first renewal.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edge_core import errors
from edge_core.config.private import write_private

if TYPE_CHECKING:
    import datetime as dt

RENEW_AT = 2 / 3  # of a life
PATIENCE_S = 86_400.0
DRAFT = "draft.pem"


class Pair(NamedTuple):
    """A certificate and its key, as paths."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Life:
    """When a certificate is good; UTC epoch seconds."""

    begins: int
    ends: int
    serial: str

    @property
    def renew_at(self) -> int:
        """Two thirds of its life are over."""
        return int(self.begins + (self.ends - self.begins) * RENEW_AT)


class Certificates:
    """The generations of one gateway.

    Args:
        cert_file, key_file: what the configuration names.
    """

    def __init__(self, cert_file: str | Path, key_file: str | Path) -> None:
        self.named = Pair(Path(cert_file), Path(key_file))
        self._store = self.named.certificate.with_suffix(".pki")
        self._attempts = 0

    # --- which one

    @property
    def current(self) -> Pair | None:
        """What is in use; None before the first."""
        if all(path.exists() for path in self.named):
            return self.named
        return self._pair("current")

    @property
    def ours(self) -> bool:
        """Was it obtained from here, and is it renewed from here?"""
        return self._pair("current") is not None and self.named.certificate.is_symlink()

    @property
    def next(self) -> Pair | None:
        """What was obtained and has not connected yet."""
        return self._pair("next")

    def candidate(self) -> Pair | None:
        """What the next attempt to connect should show: a new one and the one in use take turns."""
        self._attempts += 1
        fresh = self.next
        if fresh is not None and (self._attempts % 2 or self.current is None):
            return fresh
        return self.current

    def life(self) -> Life | None:
        """Of the one in use; None where there is none.

        Raises:
            UplinkError: it is no certificate.
        """
        return life_of(self.current.certificate) if self.current is not None else None

    def due(self, now: float) -> bool:
        """Is it time to renew, and is none obtained already?"""
        life = self.life()
        return life is not None and self.next is None and now >= life.renew_at

    # --- obtaining one

    def request(self, gateway: str) -> bytes:
        """A signing request (PEM) for a key that is kept here; a request that was cut off is made again with its key.

        Raises:
            UplinkError: nothing can be written beside cert_file.
        """
        from cryptography import x509  # here and below: most processes never need it
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import NameOID

        try:
            self._store.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = self._store / DRAFT
            if draft.exists():
                octets = draft.read_bytes()
            else:
                octets = ec.generate_private_key(ec.SECP256R1()).private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
                write_private(draft, octets)
        except OSError as error:
            raise _not_writable(self._store, error) from error
        key = serialization.load_pem_private_key(octets, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, gateway)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name)
        return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def stage(self, certificate: bytes) -> Pair:
        """Keep the certificate of the last `request`; it is `next` from now on.

        Raises:
            UplinkError: it is no certificate, or not one for our key; the disk refuses.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        try:
            draft = (self._store / DRAFT).read_bytes()
            key = serialization.load_pem_private_key(draft, None)
            parsed = x509.load_pem_x509_certificate(certificate)
        except (OSError, ValueError) as error:
            raise errors.UplinkError(f"no certificate came for our request: {error}") from error
        if parsed.public_key() != key.public_key():
            raise errors.UplinkError("the certificate that came is for another key than ours")
        try:
            self._adopt()
            generation = self._fill(certificate, draft)
            _point(self._store / "next", generation.name)
            (self._store / DRAFT).unlink()
            self._attempts = 0  # it is the next one's turn
        except OSError as error:
            raise _not_writable(self._store, error) from error
        return Pair(generation / "cert.pem", generation / "key.pem")

    def proved(self, pair: Pair) -> bool:
        """This pair has connected: if it is the new one it is the one in use from now on. True when it changed.

        Raises:
            UplinkError: the disk refuses; the new one stays `next`.
        """
        if self.next is None or not pair.certificate.samefile(self.next.certificate):
            return False
        try:
            generation = pair.certificate.resolve().parent
            _point(self._store / "current", generation.name)
            for link, name in zip(self.named, ("cert.pem", "key.pem"), strict=True):
                target = self._store / "current" / name
                _point(link, os.path.relpath(target, link.parent))
            (self._store / "next").unlink()
            for other in self._generations():
                if other.name != generation.name:
                    shutil.rmtree(other, ignore_errors=True)
        except OSError as error:
            raise _not_writable(self._store, error) from error
        return True

    def give_up(self, now: float) -> None:
        """Forget a new certificate that has not connected for PATIENCE_S; another may be asked for then."""
        fresh = self.next
        if fresh is None or now - fresh.certificate.stat().st_mtime < PATIENCE_S:
            return
        folder = fresh.certificate.resolve().parent
        (self._store / "next").unlink()
        shutil.rmtree(folder, ignore_errors=True)

    # --- files

    def _pair(self, link: str) -> Pair | None:
        folder = self._store / link
        pair = Pair(folder / "cert.pem", folder / "key.pem")
        return pair if all(path.exists() for path in pair) else None

    def _generations(self) -> list[Path]:
        return [p for p in self._store.iterdir() if p.name.isdigit() and p.is_dir()]

    def _adopt(self) -> None:
        """Make the files of a person a generation, and links of their names."""
        if self._pair("current") is not None or not all(path.exists() for path in self.named):
            return
        octets = [path.read_bytes() for path in self.named]
        _point(self._store / "current", self._fill(*octets).name)
        for link, name in zip(self.named, ("cert.pem", "key.pem"), strict=True):
            _point(link, os.path.relpath(self._store / "current" / name, link.parent))

    def _fill(self, certificate: bytes, key: bytes) -> Path:
        """A new generation, whole and on the disk."""
        number = max((int(p.name) for p in self._generations()), default=0) + 1
        part = self._store / f".part{os.getpid()}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700)
        write_private(part / "cert.pem", certificate)
        write_private(part / "key.pem", key)
        return part.rename(self._store / str(number))


def life_of(file: Path) -> Life:
    """When a certificate is good.

    Raises:
        UplinkError: it cannot be read, or is none.
    """
    from cryptography import x509

    try:
        parsed = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        raise errors.UplinkError(f"{file}: no certificate: {error}") from error
    return Life(
        _seconds(parsed.not_valid_before_utc),
        _seconds(parsed.not_valid_after_utc),
        f"{parsed.serial_number:x}",
    )


def _seconds(when: dt.datetime) -> int:
    return int(when.timestamp())


def _point(link: Path, target: str) -> None:
    """Make or replace a symbolic link in one step."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)
    folder = os.open(link.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _not_writable(store: Path, error: OSError) -> errors.UplinkError:
    return errors.UplinkError(
        f"{store}: {error.strerror}: the certificate cannot be kept; give the gateway's user a folder of its own"
    )
