"""Sealed keys files, and where the key-encrypting key (KEK) comes from.

A sealed file holds each meter key wrapped by itself (AES key wrap with padding, RFC 5649), meter and name wrapped with
it, so that no entry can be moved to another meter. `[keys] kek` names the KEK's source:

    creds:<path>    a credential that systemd-creds encrypted with the TPM, the host's key, or both; it decrypts it here
    secret:<id>     a secret of AWS: Greengrass' Secret Manager on classic, else Secrets Manager by the token exchange
    file:<path>     16 or 32 octets, mode 0600. INSECURE: whoever copies the disk has the keys
    ""              the first that is there: the credential opendcu-kek that systemd gave the service
                    (LoadCredentialEncrypted=), opendcu-kek.cred beside the sealed file (creds:), opendcu-kek beside it
                    (file:)

No KEK and no key is ever part of an error or a log. What programs say on standard error is shown: neither
systemd-creds nor our own fetcher writes secrets there.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_core.config.private import read_private, write_private
from edge_core.config.tables import ConfigErrors, Findings
from edge_core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

SEALED_SCHEMA = "opendcu.sealed/1"
CREDENTIAL = "opendcu-kek"
"""Name of the credential, and of the files that are looked for beside the sealed one."""

KEK_OCTETS = (16, 32)
SOURCES = ("creds", "secret", "file")
PROGRAM_S = 20.0  # a TPM is slow
MOST_SECRET_OCTETS = 65_536  # of Secrets Manager
AWAY = 3
"""Exit code of greengrass/secret.py: not now, but perhaps later."""


class Unavailable(ConfigErrors):
    """The secret cannot be had now; the cloud that keeps it is away. A later try may succeed."""


def insecure(source: str) -> bool:
    """Does a copy of the disk hold the KEK too?"""
    return source.startswith("file:")


def source_of(kek: str, sealed: Path, environment: Mapping[str, str]) -> str:
    """Where the KEK is to be had: `kek` itself, or for "" the first place that has one.

    Raises:
        ConfigErrors: none has.
    """
    if kek:
        return kek
    given = environment.get("CREDENTIALS_DIRECTORY", "")
    if given and (Path(given) / CREDENTIAL).exists():
        return "credential"
    for name, kind in ((f"{CREDENTIAL}.cred", "creds"), (CREDENTIAL, "file")):
        if (sealed.parent / name).exists():
            return f"{kind}:{sealed.parent / name}"
    raise _refusal(
        "[keys]", "kek", f"no key-encrypting key for {sealed}",
        f"give the service LoadCredentialEncrypted={CREDENTIAL}, or make one here: opendcu keys seal keys.toml -o {sealed}",
    )  # fmt: skip


def kek_of(source: str, environment: Mapping[str, str]) -> bytes:
    """The KEK.

    Raises:
        Unavailable: the secret's cloud is away.
        ConfigErrors: it is not there, cannot be decrypted here, or has another length.
    """
    kind, _, place = source.partition(":")
    if kind == "credential":
        kek = read_private(Path(environment["CREDENTIALS_DIRECTORY"]) / CREDENTIAL)
    elif kind == "creds":
        kek = _ask_systemd(["decrypt", f"--name={CREDENTIAL}", place, "-"], b"", place)
    elif kind == "secret":
        kek = _plain(fetch(place, environment))
    elif kind == "file":
        kek = read_private(Path(place))
        log.warning(
            "keys: INSECURE: the key-encrypting key lies in %s beside what it protects", place
        )
    else:
        raise _refusal("[keys]", "kek", "is no source", f"known: {', '.join(SOURCES)}")
    if len(kek) not in KEK_OCTETS:
        raise _refusal(source, "", f"{len(kek)} octets; a key-encrypting key has 16 or 32")
    return kek


def make_kek(source: str, with_key: str = "auto") -> bytes:
    """A new KEK of 32 octets, kept at the source from now on.

    Raises:
        ConfigErrors: systemd-creds is missing or refuses, or the source is none that we can write to.
        OSError: the file cannot be written.
    """
    kind, _, place = source.partition(":")
    kek = secrets.token_bytes(32)
    if kind == "creds":
        arguments = ["encrypt", f"--name={CREDENTIAL}", f"--with-key={with_key}", "-", "-"]
        write_private(Path(place), _ask_systemd(arguments, kek, place))
    elif kind == "file":
        write_private(Path(place), kek)
    else:
        raise _refusal(source, "", "no key can be made there", "make it in AWS, 32 octets")
    return kek


def fetch(secret: str, environment: Mapping[str, str] = os.environ) -> bytes:
    """A secret of AWS, by a short-lived child: it waits for the outside, and awscrt need not stay in memory.

    Raises:
        Unavailable: the nucleus, the token exchange or the cloud does not answer now.
        ConfigErrors: there is no such secret, or we may not have it.
    """
    command = [sys.executable, "-P", "-m", "edge_core.greengrass.secret", secret]
    try:
        done = subprocess.run(  # noqa: S603 ourselves
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROGRAM_S,
            check=False,
            env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
    except subprocess.TimeoutExpired:
        raise _away(secret, f"no answer within {PROGRAM_S:.0f} s") from None
    why = _last_line(done.stderr)
    if done.returncode == AWAY:
        raise _away(secret, why)
    if done.returncode or len(done.stdout) > MOST_SECRET_OCTETS:
        raise _refusal(f"secret {secret}", "", why or f"exit {done.returncode}")
    return done.stdout


def seal(tables: Mapping[str, Mapping[str, str]], kek: bytes) -> bytes:
    """A sealed file of the tables of a keys file."""
    from cryptography.hazmat.primitives.keywrap import aes_key_wrap_with_padding

    sealed = {
        meter: {
            name: aes_key_wrap_with_padding(kek, json.dumps([meter, name, value]).encode()).hex()
            for name, value in table.items()
        }
        for meter, table in tables.items()
    }
    return json.dumps({"schema": SEALED_SCHEMA, "meters": sealed}, indent=1).encode()


def unseal(
    path: Path, kek: str = "", environment: Mapping[str, str] = os.environ
) -> dict[str, dict[str, str]]:
    """The tables of a sealed file.

    Args:
        kek: `[keys] kek`.

    Raises:
        Unavailable: the KEK's cloud is away.
        ConfigErrors: no KEK, a damaged file, or one sealed under another key or for another meter.
    """
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding

    octets = read_private(path)
    try:
        document = msgspec.json.decode(octets, type=dict[str, str | dict[str, dict[str, str]]])
        meters = document["meters"]
        if document.get("schema") != SEALED_SCHEMA or isinstance(meters, str):
            raise ValueError("schema")  # noqa: TRY301 one answer for whatever is wrong with the file
    except (ValueError, KeyError, RecursionError):
        hint = f'seal it: opendcu keys seal {path} -o {path.with_suffix(".sealed")}; or provider = "file"'
        raise _refusal(str(path), "", "is no sealed keys file", hint) from None
    key = kek_of(source_of(kek, path, environment), environment)
    tables: dict[str, dict[str, str]] = {}
    findings = Findings()
    for meter, table in meters.items():
        for name, wrapped in table.items():
            try:
                entry = json.loads(aes_key_unwrap_with_padding(key, bytes.fromhex(wrapped)))
            except (InvalidUnwrap, ValueError):
                findings.mistake(
                    str(path), meter, name, "cannot be unsealed: another key, or damaged"
                )
                continue
            if entry[:2] != [meter, name]:
                findings.mistake(str(path), meter, name, "was sealed for another meter or key")
                continue
            tables.setdefault(meter, {})[name] = entry[2]
    findings.raise_mistakes()
    return tables


def _plain(octets: bytes) -> bytes:
    """A KEK as people put it into a secret: its octets, or 64 hex digits."""
    try:
        return (
            bytes.fromhex(octets.decode()) if len(octets.strip()) == 2 * KEK_OCTETS[1] else octets
        )
    except ValueError:
        return octets


def _ask_systemd(arguments: list[str], given: bytes, place: str) -> bytes:
    try:
        done = subprocess.run(  # noqa: S603
            ["systemd-creds", *arguments],  # noqa: S607 where the distribution has it
            input=given, capture_output=True, timeout=PROGRAM_S, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        hint = 'install systemd 250 or newer; or kek = "file:<path>", which is INSECURE: a copy of the disk has both'
        raise _refusal(place, "", "systemd-creds is not on this box", hint) from None
    except subprocess.TimeoutExpired:
        raise _refusal(place, "", f"systemd-creds did not end within {PROGRAM_S:.0f} s") from None
    if done.returncode:
        hint = (
            "it needs the host's key or the TPM: root, group tss, or LoadCredentialEncrypted= of the service;"
            " on another box than the one it was sealed on it never succeeds"
        )
        raise _refusal(place, "", f"systemd-creds: {_last_line(done.stderr)}", hint)
    return done.stdout


def _last_line(octets: bytes) -> str:
    lines = octets.decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else ""


def _refusal(file: str, key: str, problem: str, hint: str = "") -> ConfigErrors:
    return ConfigErrors([ConfigError(file, key, "", problem, hint)])


def _away(secret: str, why: str) -> Unavailable:
    return Unavailable([ConfigError(f"secret {secret}", "", "", f"cannot be had now: {why}")])
