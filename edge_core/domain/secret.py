"""Keys that cannot be shown by accident."""

from __future__ import annotations

import hashlib
from typing import NoReturn


class Secret:
    """Octets whose repr, str and JSON say only how many there are. Pickling is refused."""

    __slots__ = ("_octets",)

    def __init__(self, octets: bytes) -> None:
        self._octets = bytes(octets)

    def reveal(self) -> bytes:
        """The octets. Call it where they enter the cipher, nowhere else."""
        return self._octets

    def fingerprint(self) -> str:
        """16 hex digits that tell keys apart without telling the key."""
        return hashlib.sha256(b"opendcu key fingerprint" + self._octets).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._octets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._octets == other._octets

    def __hash__(self) -> int:
        return hash(self._octets)

    def __repr__(self) -> str:
        return f"Secret({len(self._octets)} octets)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled")
