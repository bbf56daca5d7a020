"""Who may have sent a push: by system title, by the device that it names in the clear, by the sender's address.

Titles and devices are learned by the drivers (the meters' memories), or written in the configuration. What is unknown
is looked up there again, at most every REFRESH_S: anybody may send names that nobody has.

Limits: of the meters behind one address MAX_CANDIDATES are tried; the tag, where there is one, decides.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from edge_core.protocols.dlms import push

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edge_core.clock import Clock

REFRESH_S: Final = 0.2
MAX_CANDIDATES: Final = 16
NAMES_OF_DEVICES: Final = ("device_id", "equipment", "logical_device")
"""Entries of a nameplate under which pushes may name their device, beside its serial."""


class Senders:
    """The meters by what their pushes show of them. Used by the threads of several sockets.

    Args:
        meters: ids of all meters that may push.
        remember: (meter, key) -> what is known of a meter.
        clock: spaces the look-ups.
    """

    def __init__(
        self, meters: Iterable[str], remember: Callable[[str, str], Any], clock: Clock
    ) -> None:
        self._meters, self._remember, self._clock = tuple(meters), remember, clock
        self._by_title: dict[bytes, str] = {}
        self._by_device: dict[str, str] = {}
        self._by_place: dict[str, list[str]] = {}
        self._refreshed = float("-inf")

    def know(self, meter: str, *, title: bytes = b"", device: str = "", place: str = "") -> None:
        """What is known of a meter: the newest holder of a title has it, the first of a device keeps it."""
        if title:
            self._by_title[title] = meter
        if device:
            self._by_device.setdefault(device, meter)
        if place:
            self._by_place.setdefault(place, []).append(meter)

    def candidates(self, envelope: push.Envelope, place: str, *, line: bool) -> list[str]:
        """Meters that may have sent this, best first.

        Args:
            envelope: what came.
            place: the sender's address, or the name of the line that it came on.
            line: it is a line: whoever hangs on it sent it, whatever it names.
        """
        known = self._find(self._by_title, envelope.title) if envelope.title else None
        if envelope.sealed is None and not line:
            found = (self._find(self._by_device, name) for name in push.names(envelope.apdu))
            known = next((meter for meter in found if meter is not None), None)
        best = [known] if known is not None else []
        return best + [m for m in self._by_place.get(place, [])[:MAX_CANDIDATES] if m != known]

    def _find(self, index: dict[Any, str], key: Any) -> str | None:
        if key not in index:
            self._refresh()
        return index.get(key)

    def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now - self._refreshed < REFRESH_S:
            return
        self._refreshed = now
        for meter in self._meters:
            identity = self._remember(meter, "identity")
            if not isinstance(identity, dict):
                continue
            with contextlib.suppress(ValueError, TypeError):
                self.know(meter, title=bytes.fromhex(identity.get("title") or ""))
            plate = identity.get("nameplate")
            named = [plate.get(n) for n in NAMES_OF_DEVICES] if isinstance(plate, dict) else []
            for name in (identity.get("serial"), *named):
                if isinstance(name, str):
                    self.know(meter, device=name)
