"""The APDUs that wrap protected ones: glo-, ded-, general-glo, general-ded, general-ciphering.

Invariants: an APDU found inside a service-specific wrapper is the service that the wrapper names; a wrapper that
carries no system title is opened with the title of the association. `peek` reads title and counter without keys, so
that a listener can find the meter and its keys first.
Limits: `Sealed.open` takes the key that it is given; which one a general-ciphering wants, its `key_info` says (general).
Source: DLMS UA Green Book ed. 9, clauses 9.2.7.2, 9.5 (tags).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from edge_core.errors import LocalProtocolError, MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.general import (
    GENERAL_CIPHERING,
    GENERAL_SIGNING,
    Header,
    KeyInfo,
    read_header,
    read_key_info,
)
from edge_core.protocols.dlms.security import AUTHENTICATED_ENCRYPTED, HEADER_OCTETS

if TYPE_CHECKING:
    from edge_core.protocols.dlms.security import Opened, SecurityContext

GENERAL_GLO: Final = 0xDB
GENERAL_DED: Final = 0xDC

GLO: Final[dict[int, int]] = {
    0x01: 0x21,  # initiate-request
    0x08: 0x28,  # initiate-response
    0x0E: 0x2E,  # confirmed-service-error
    0xC0: 0xC8,  # get-request
    0xC1: 0xC9,  # set-request
    0xC2: 0xCA,  # event-notification-request
    0xC3: 0xCB,  # action-request
    0xC4: 0xCC,  # get-response
    0xC5: 0xCD,  # set-response
    0xC7: 0xCF,  # action-response
}
"""Tag of the service -> tag of its wrapper under a global key."""
DED: Final[dict[int, int]] = {
    0x01: 0x41,
    0x08: 0x48,
    0x0E: 0x4E,
    0xC0: 0xD0,
    0xC1: 0xD1,
    0xC2: 0xD2,
    0xC3: 0xD3,
    0xC4: 0xD4,
    0xC5: 0xD5,
    0xC7: 0xD7,
}
"""The same under a dedicated key."""
PLAIN_OF: Final = {wrapper: plain for table in (GLO, DED) for plain, wrapper in table.items()}
"""Tag of a wrapper -> tag of the service in it."""
_DEDICATED: Final = frozenset(DED.values()) | {GENERAL_DED}
_NAMES: Final = {
    0x01: "initiate-request",
    0x08: "initiate-response",
    0x0E: "confirmed-service-error",
    0xC0: "get-request",
    0xC1: "set-request",
    0xC2: "event-notification-request",
    0xC3: "action-request",
    0xC4: "get-response",
    0xC5: "set-response",
    0xC7: "action-response",
}


class Sealed(msgspec.Struct, frozen=True):
    """A protected APDU, unopened.

    Attributes:
        tag: of the wrapper.
        title: the sender's system title as the wrapper gives it; b"" where it gives none.
        control: security control octet.
        counter: the sender's invocation counter, unverified.
        body: SC || IC || protected APDU [|| tag].
        header: who speaks to whom; authenticated beside it (general-ciphering).
        key_info: under which key (general-ciphering).
    """

    tag: int
    title: bytes
    control: int
    counter: int
    body: bytes
    header: Header | None = None
    key_info: KeyInfo = KeyInfo()

    @property
    def name(self) -> str:
        """The standard's name of the wrapper: `glo-get-response`, `general-glo-ciphering`."""
        return wrapper_name(self.tag)

    @property
    def dedicated(self) -> bool:
        """Sealed under the dedicated key of the association."""
        return self.tag in _DEDICATED

    def open(self, context: SecurityContext, title: bytes = b"") -> Opened:
        """Verify and decrypt.

        Args:
            context: the keys.
            title: the sender's title where the wrapper gives none (known from the association).

        Raises:
            MalformedApdu, TagInvalid: as SecurityContext.open; another service inside than the wrapper names.
        """
        more = self.header.octets if self.header is not None else b""
        opened = context.open(self.title or title, self.body, more)
        expected = PLAIN_OF.get(self.tag)
        if expected is not None and opened.plain[:1] != bytes((expected,)):
            raise MalformedApdu(f"a {self.name} does not hold a {_NAMES[expected]}", 0)
        return opened


def is_ciphered(apdu: bytes) -> bool:
    """Does the APDU wrap a protected one that `peek` reads?"""
    return apdu[:1] in _WRAPPERS


_WRAPPERS: Final = frozenset(
    bytes((tag,)) for tag in (*PLAIN_OF, GENERAL_GLO, GENERAL_DED, GENERAL_CIPHERING)
)


def wrapper_name(tag: int) -> str:
    """The standard's name of a wrapping APDU; `apdu-XX` for another tag."""
    general = {
        GENERAL_GLO: "general-glo-ciphering",
        GENERAL_DED: "general-ded-ciphering",
        GENERAL_CIPHERING: "general-ciphering",
        GENERAL_SIGNING: "general-signing",
    }
    if tag in general:
        return general[tag]
    plain = PLAIN_OF.get(tag)
    if plain is None:
        return f"apdu-{tag:02x}"
    return ("ded-" if tag in _DEDICATED else "glo-") + _NAMES[plain]


def peek(apdu: bytes) -> Sealed:
    """Read the wrapper: who sealed it, with which counter. No keys needed, nothing verified.

    Raises:
        MalformedApdu: no wrapper, lengths that do not end with the APDU, or a key-info that is not known.
    """
    if not apdu:
        raise MalformedApdu("an empty APDU", 0)
    tag = apdu[0]
    title, header, key_info, start = b"", None, KeyInfo(), 1
    if tag in PLAIN_OF:
        pass
    elif tag in (GENERAL_GLO, GENERAL_DED):
        title, start = axdr.read_octets(apdu, 1)
        if len(title) not in (0, 8):
            raise MalformedApdu(f"a system title has 8 octets, not {len(title)}", 1)
    elif tag == GENERAL_CIPHERING:
        header, start = read_header(apdu)
        title = header.originator
        key_info, start = read_key_info(apdu, start)
    else:
        raise MalformedApdu(f"APDU {tag:02X} wraps no protected one", 0)
    size, at = axdr.read_length(apdu, start)
    if size != len(apdu) - at:
        raise MalformedApdu(
            f"{wrapper_name(tag)} of {size} octets, {len(apdu) - at} are there", start
        )
    if size < HEADER_OCTETS:
        raise MalformedApdu("a security header has 5 octets", at)
    counter = int.from_bytes(apdu[at + 1 : at + HEADER_OCTETS], "big")
    return Sealed(tag, title, apdu[at], counter, apdu[at:], header, key_info)


def seal(
    context: SecurityContext,
    title: bytes,
    counter: int,
    apdu: bytes,
    *,
    level: int = AUTHENTICATED_ENCRYPTED,
    general: bool = False,
    dedicated: bool = False,
) -> bytes:
    """Protect an APDU.

    Args:
        context: the keys (of the dedicated key, if `dedicated`).
        title: our system title.
        counter: durable and never used before under this key.
        apdu: any service for `general`, one of GLO for a service-specific wrapper.
        level: AUTHENTICATED, ENCRYPTED or both.
        general: general-glo-ciphering or general-ded-ciphering instead of glo- or ded-.
        dedicated: under the dedicated key.

    Raises:
        CounterExhausted, LocalProtocolError: as SecurityContext.seal; a service without a specific wrapper.
    """
    body = context.seal(title, counter, apdu, level)
    if general:
        head = bytes((GENERAL_DED if dedicated else GENERAL_GLO, 8)) + title
    else:
        tag = (DED if dedicated else GLO).get(apdu[0])
        if tag is None:
            raise LocalProtocolError(f"APDU {apdu[0]:02X} has no service-specific ciphering")
        head = bytes((tag,))
    return head + axdr.encode_length(len(body)) + body
