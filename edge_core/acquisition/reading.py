"""One read on demand, as `opendcu read` and the command `read` answer it: generic over drivers.

The command line and a running gateway call the same `read`, so that both give the same document (DESIGN section 4):
`{"meter", "device", "model", "read_at", "layouts", "blocks", "registers"}`. A read that fails after it brought
something says so beside it: the keys `error, during, message, hint` in the same document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import msgspec

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.acquisition.profiles import kinds_of
from edge_core.acquisition.second_opinion import NoSecondOpinion, compare
from edge_core.domain import as_list
from edge_core.errors import MeterError, MeterRefused, WrongMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from edge_core.acquisition.drivers import Driver
    from edge_core.clock import Clock
    from edge_core.config.models import Model
    from edge_core.config.schema import Meter
    from edge_core.domain import Block, Layout, RegisterReading


@runtime_checkable
class Observable(Protocol):
    """A driver whose answers can be listened to, deciphered."""

    observer: Callable[[str, bytes], None] | None


PROFILE_READS = ("interval", "midnight", "billing")


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What is read; `from` and `to` in JSON are `since` and `until`.

    Attributes:
        what: interval, midnight, billing, events (all logs), events-<k>, instantaneous, nameplate, clock, or an OBIS
            code with an optional attribute: `1.0.1.8.0.255:3`.
        since: rows captured at or after this UTC second; None = from the oldest the meter holds.
        until: rows captured at or before this UTC second; None = up to the newest.
        trace: the frames as well, secrets masked.
        second_opinion: have dlms-cosem decode the answers too.
    """

    what: str = "interval"
    since: int | None = msgspec.field(default=None, name="from")
    until: int | None = msgspec.field(default=None, name="to")
    trace: bool = False
    second_opinion: bool = False


async def read(
    driver: Driver, request: Reading, *, meter: Meter, model: Model, clock: Clock
) -> dict[str, Any]:
    """The document of one read; the caller closes the driver.

    Args:
        driver: fresh.
        request: what is read.
        meter: whose configured serial is checked.
        model: says which profiles there are.
        clock: stamps the document.

    Raises:
        MeterError: nothing could be read. When something was, the error stands in the document.
        NoSecondOpinion: it was asked for and cannot be had.
    """
    answers: list[tuple[str, bytes]] = []
    if request.second_opinion:
        if not isinstance(driver, Observable):
            raise NoSecondOpinion(f"there is none for {model.about.protocol} meters")
        driver.observer = lambda what, data: answers.append((what, data))
    blocks: list[Block] = []
    registers: list[RegisterReading] = []
    failed: MeterError | None = None
    device = await driver.identify()
    if meter.serial and device.serial != meter.serial:
        raise WrongMeter(
            meter.id,
            meter.line,
            "identify",
            f"the device at {meter.address} has serial {device.serial!r}, expected {meter.serial!r}",
            "Nothing was read. Correct `serial` if the meter was exchanged",
        )
    kinds = _profiles(request.what, model)
    try:
        for kind in kinds:
            blocks += await driver.read_profile(ProfileRequest(kind, request.since, request.until))
        if not kinds:
            registers += await driver.read_registers(request.what)
    except MeterError as error:
        if not blocks and not registers:
            raise
        failed = error
    document = {
        "meter": meter.id,
        "device": device.serial,
        "model": model.name,
        "read_at": int(clock.now()),
        **blocks_document(block for block in blocks if block.rows),
        "registers": [register_document(r) for r in registers],
    }
    if request.second_opinion:
        document["second_opinion"] = await compare(answers)
    if failed is not None:
        document |= {
            "error": type(failed).__name__,
            "during": failed.during,
            "message": failed.cause,
            "hint": failed.hint,
        }
    return document


def _profiles(what: str, model: Model) -> Sequence[str]:
    """The profiles that a read asks for; () for single values."""
    kinds = kinds_of(model)
    if what == "events":
        logs = [kind for kind in kinds if kind.startswith("events")]
        if not logs:
            raise MeterRefused("", "", what, f"the meter model {model.name} has no event log")
        return logs
    if what in PROFILE_READS or what.startswith("events-"):
        return [what]
    return ()


def blocks_document(blocks: Iterable[Block]) -> dict[str, Any]:
    """`layouts` and `blocks` as a message carries them (DESIGN section 6)."""
    layouts: dict[Layout, int] = {}
    out = [_block(block, layouts.setdefault(block.layout, len(layouts))) for block in blocks]
    return {"layouts": [_layout(layout) for layout in layouts], "blocks": out}


def _layout(layout: Layout) -> dict[str, Any]:
    return {
        "profile": layout.profile,
        "period": layout.period,
        "cols": [
            [c.obis, c.unit, c.scaler] + ([c.attribute] if c.attribute != 2 else [])
            for c in layout.cols
        ],
    }


def _block(block: Block, layout: int) -> dict[str, Any]:
    times, period = as_list(block.times), block.layout.period
    regular = (
        block.kind == "interval"
        and period > 0
        and all(t == times[0] + i * period for i, t in enumerate(times))
    )
    out: dict[str, Any] = {"meter": block.meter, "device": block.device, "layout": layout}
    out |= {"t0": times[0]} if regular else {"t": times}
    out |= {
        "rows": block.rows,
        "values": [as_list(column) for column in block.columns],
        "tz": block.tz,
        "read_at": block.read_at,
    }
    if block.flags:
        out["flags"] = [list(run) for run in block.flags]
    if block.occ:
        out["occ"] = [list(pair) for pair in block.occ]
    if block.multiplier != 1:
        out["multiplier"] = block.multiplier
    if block.q:
        out["q"] = block.q
    return out


def register_document(reading: RegisterReading) -> dict[str, Any]:
    """One register as JSON."""
    return {
        "obis": reading.obis,
        "name": reading.name,
        "attribute": reading.attribute,
        "value": reading.value,
        "scaler": reading.scaler,
        "unit": reading.unit,
    }
