"""Names of gaps (DESIGN section 7, "Gap causes") and of refused answers: from an error, and from what stands around rows.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_core import errors
from edge_core.domain import Flag, as_list
from edge_core.protocols.dlms.refusals import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge_core.domain import Block

LINE_SILENT = "line-silent"
ASSOCIATION_REFUSED = "association-refused"
KEY_REJECTED = "key-rejected"
COUNTER_REFUSED = "counter-refused"
METER_CLOCK = "meter-clock"
NO_SUCH_ROW = "no-such-row"
METER_POWER_OFF = "meter-power-off"
OVERWRITTEN = "overwritten"
GATEWAY_OFF = "gateway-off"
GATEWAY_CLOCK = "gateway-clock"
JOURNAL_FULL = "journal-full"
LINK = "link"
CLOUD_REFUSED = "cloud-refused"

CAUSES = frozenset(
    (
        LINE_SILENT, ASSOCIATION_REFUSED, KEY_REJECTED, COUNTER_REFUSED, METER_CLOCK, NO_SUCH_ROW, METER_POWER_OFF,
        OVERWRITTEN, GATEWAY_OFF, GATEWAY_CLOCK, JOURNAL_FULL, LINK, CLOUD_REFUSED,
    )
)  # fmt: skip


_REFUSALS = (
    (Refused, ""),  # a no of the meter's is an answer that is believed, or a hint
    (errors.CounterExhausted, ""),  # ours, not the answer's
    (errors.TagInvalid, "tag-invalid"),
    (errors.Replayed, "replayed"),
    (errors.Downgraded, "downgraded"),
    (errors.Compressed, "compressed"),
    (errors.WrongInvokeId, "wrong-invoke-id"),
    (errors.LocalProtocolError, "faults-of-protocol"),
    (errors.ProtocolError, "malformed"),
)


def refusal_of(error: BaseException | None) -> str:
    """Under which name an answer is counted that was not believed, as the listener counts pushes; "" = it was, or none came."""
    return next((name for kind, name in _REFUSALS if isinstance(error, kind)), "")


def cause_of(error: BaseException) -> str:
    """What a meter owes after this error is missing for this cause."""
    if isinstance(error, errors.KeyRejected):
        text = f"{error.cause} {error.__cause__ or ''}".lower()
        counter = isinstance(error.__cause__, errors.CounterExhausted) or "counter" in text
        return COUNTER_REFUSED if counter else KEY_REJECTED
    if isinstance(error, (errors.MeterRefused, errors.WrongMeter)):
        return ASSOCIATION_REFUSED
    if isinstance(error, errors.JournalError):
        return JOURNAL_FULL
    return LINE_SILENT


@dataclass(frozen=True, slots=True)
class Absence:
    """Rows that a meter does not hold have capture times from first to last, both included, UTC seconds."""

    first: int
    last: int
    cause: str


def absences(
    blocks: Iterable[Block], *, known: int | None, period: int, stepped_forward: bool = False
) -> list[Absence]:
    """What a meter did not hold in a span that was read: rows between two rows, or between the last known and the first.

    A row at the end of the span that is not there yet is no absence: it is one when a later row has come.

    Args:
        blocks: all rows of the span, in buffer order.
        known: the newest time known before; the span began before it.
        period: capture period in seconds, 0 = irregular: nothing can be said.
        stepped_forward: the meter's clock was seen to jump ahead since the last contact.
    """
    if period <= 0:
        return []
    flags: dict[int, int] = {}
    for block in blocks:
        times = as_list(block.times)
        bits = [0] * len(times)
        for first, count, value in block.flags:
            for row in range(first, first + count):
                bits[row] |= value
        for at, value in zip(times, bits, strict=True):
            flags[at] = flags.get(at, 0) | value
    return list(_between(sorted(flags), flags, known, period, stepped_forward=stepped_forward))


def _between(
    times: list[int],
    flags: dict[int, int],
    known: int | None,
    period: int,
    *,
    stepped_forward: bool,
) -> Iterator[Absence]:
    before = known
    overlap = known is None or not times or times[0] <= known
    for at in times:
        if before is not None and round((at - before) / period) > 1:
            if not overlap and before == known:
                cause = OVERWRITTEN  # even rows that we have seen are gone
            elif flags[at] & Flag.POWER_DOWN:
                cause = METER_POWER_OFF
            elif flags[at] & Flag.CLOCK_ADJUSTED or stepped_forward:
                cause = METER_CLOCK
            else:
                cause = NO_SUCH_ROW
            yield Absence(before + 1, at - 1, cause)
        before = at if before is None else max(before, at)
