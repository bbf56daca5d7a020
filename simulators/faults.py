"""What a simulated meter can do wrong, for how long.

`silent`        hears and counts, the answer never leaves
`refuse`        closes every connection at once
`garbage`       random octets instead of an answer, then the line is closed
`cut`           half of an answer, then the line is closed
`slow`          answers in small pieces with pauses
`wrong-key`     the meter's keys were changed: it knows others than the gateway
`wrong-tag`     answers whose tag does not verify
`replay`        the answer to the request before comes again
`plain`         answers in the clear within a ciphered association
`weaker`        answers that are authenticated but not encrypted
`wrong-invoke`  answers to another request than the one that was asked
`unsigned`      answers without the signature that requests bear
`rows-missing`  what falls due is never captured
`busy`          Modbus: exception 6 to every request (DLMS meters take it as `silent`)
At once, not for a time: `step-back` (clock), `swap` (another device behind the address).
"""

from __future__ import annotations

LASTING = frozenset(
    (
        *("silent", "refuse", "garbage", "cut", "slow", "wrong-key", "wrong-tag", "rows-missing"),
        *("replay", "plain", "weaker", "wrong-invoke", "unsigned", "busy"),
    )
)


class Faults:
    """The faults of one meter, each until an instant of the monotonic clock."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def begin(self, what: str, until: float) -> None:
        """Let a fault last until `until` (monotonic seconds).

        Raises:
            ValueError: no such fault.
        """
        if what not in LASTING:
            raise ValueError(f"no fault {what!r}: one of {', '.join(sorted(LASTING))}")
        self._until[what] = until

    def end(self, what: str) -> None:
        """End it now."""
        self._until.pop(what, None)

    def has(self, what: str, now: float) -> bool:
        """Is it on?"""
        if not self._until:
            return False
        until = self._until.get(what)
        if until is None:
            return False
        if until > now:
            return True
        del self._until[what]
        return False

    def active(self, now: float) -> list[str]:
        """Names of the faults that are on."""
        return sorted(what for what in list(self._until) if self.has(what, now))
