"""What is learned of a meter's profiles: capture objects, period, order, scalers; kept in the driver's memory.

It is proven at first contact, when another device answers, after new firmware or another configuration, when rows do not
fit, and daily: then read again. A plan (compiled layouts) is shared by all meters that agree in these, so a fleet of one model has a handful.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import msgspec

from edge_core.domain import Flag, Obis, unit_from_dlms
from edge_core.errors import MalformedApdu
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.cosem import CaptureObject
from edge_core.protocols.dlms.datetime import LOCAL_TO_UTC, UTC_TO_LOCAL, ClockRules
from edge_core.protocols.dlms.profile import Plan, ScalerUnit

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.acquisition.drivers import Memory
    from edge_core.config.models import DlmsModel, Profile

MAX_CAPTURE_OBJECTS: Final = 256
PROVEN_FOR_S: Final = 86_400
"""Civil seconds after which capture objects and scalers are proven again."""
NEWEST_FIRST: Final = 2
"""Sort method LIFO (attribute 5)."""

DISTRUSTED: Final = "distrusted"
"""Memory key: until when proofs are not believed any more."""

_KEPT_PLANS: Final = 256


class Learned(msgspec.Struct, frozen=True):
    """What the meter says about one profile.

    Attributes:
        device: serial of who said it.
        proven_at: UTC epoch seconds of our clock.
        objects: capture objects.
        period: capture period in seconds.
        sort: sort method, 0 = not told.
        scalers: (obis, attribute, scaler, unit) of the columns that have one.
    """

    device: str
    proven_at: int
    objects: tuple[CaptureObject, ...]
    period: int
    sort: int
    scalers: tuple[tuple[Obis, int, int, str], ...]

    def holds(self, device: str, now: float, distrusted: int = 0) -> bool:
        """Is it still believed? Not where it was proven until `distrusted`."""
        fresh = 0 <= now - self.proven_at < PROVEN_FOR_S
        return self.device == device and fresh and self.proven_at > distrusted


class LayoutChange(msgspec.Struct, frozen=True):
    """How two proofs of one profile differ.

    Attributes:
        proven_before, proven_now: UTC epoch seconds of the proofs.
        added, removed: capture objects as `<OBIS>:<attribute>`; both empty where only their order changed.
        rescaled: capture objects whose scaler or unit changed, as `<OBIS>:<attribute> <before> -> <now>`.
    """

    proven_before: int
    proven_now: int
    added: tuple[str, ...]
    removed: tuple[str, ...]
    rescaled: tuple[str, ...]

    @classmethod
    def between(cls, before: Learned, now: Learned) -> LayoutChange | None:
        """The change, or None where rows mean the same under both."""
        if (before.objects, before.period, set(before.scalers)) == (
            now.objects,
            now.period,
            set(now.scalers),
        ):
            return None
        old = {f"{o.obis}:{o.attribute}" for o in before.objects}
        new = {f"{o.obis}:{o.attribute}" for o in now.objects}
        scales = {(o, a): (s, u) for o, a, s, u in before.scalers}
        rescaled = tuple(
            f"{obis}:{attribute} {was[0]} {was[1]} -> {scaler} {unit}"
            for obis, attribute, scaler, unit in now.scalers
            if (was := scales.get((obis, attribute), (scaler, unit))) != (scaler, unit)
        )
        return cls(
            before.proven_at,
            now.proven_at,
            tuple(sorted(new - old)),
            tuple(sorted(old - new)),
            rescaled,
        )


class Changes:
    """Layout changes of a meter that are not settled: found in this session or in an earlier one that did not come to it."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._known: dict[str, LayoutChange | None] = {}

    def get(self, kind: str) -> LayoutChange | None:
        """The change of a kind of profile, None without."""
        if kind not in self._known:
            value = self._memory.get(f"relaid.{kind}")
            self._known[kind] = None
            if isinstance(value, dict):
                with contextlib.suppress(msgspec.ValidationError):
                    self._known[kind] = msgspec.convert(value, LayoutChange)
        return self._known[kind]

    def found(self, kind: str, change: LayoutChange) -> None:
        """Two proofs differ. Where an earlier change is not settled either, rows since the proof before that one count."""
        earlier = self.get(kind)
        if earlier is not None:
            change = msgspec.structs.replace(change, proven_before=earlier.proven_before)
        self._known[kind] = change
        self._memory.put(f"relaid.{kind}", msgspec.to_builtins(change))

    def settle(self, kind: str) -> LayoutChange | None:
        """All rows since were read again; returns the change that this was for."""
        change = self.get(kind)
        if change is not None:
            self._known[kind] = None
            self._memory.put(f"relaid.{kind}", None)
        return change


def remember(put: Callable[[str, Any], None], kind: str, learned: Learned) -> None:
    """Keep what was learned of a kind of profile, in two values: what like meters share, and what is this meter's own.

    A memory holds equal values once, and what a fleet of one model says of its profiles is equal.
    """
    value = msgspec.to_builtins(learned)
    put(f"proof.{kind}", [value.pop("device"), value.pop("proven_at")])
    put(f"profile.{kind}", value)


def remembered(get: Callable[[str], Any], kind: str) -> Learned | None:
    """What `remember` kept, or None when it is nothing that we can read (an older release wrote it)."""
    value, proof = get(f"profile.{kind}"), get(f"proof.{kind}")
    if not isinstance(value, dict) or not isinstance(proof, list) or len(proof) != 2:
        return None
    try:
        return msgspec.convert(value | {"device": proof[0], "proven_at": proof[1]}, Learned)
    except msgspec.ValidationError:
        return None


def capture_objects(data: bytes) -> tuple[CaptureObject, ...]:
    """Attribute 3 of a profile.

    Raises:
        MalformedApdu: no array of capture objects, or more than MAX_CAPTURE_OBJECTS.
    """
    value = axdr.decode_whole(data).value
    if not isinstance(value, tuple) or len(value) > MAX_CAPTURE_OBJECTS:
        raise MalformedApdu(f"no array of at most {MAX_CAPTURE_OBJECTS} capture objects")
    return tuple(CaptureObject.from_data(item) for item in value)


def whole_number(data: bytes) -> int:
    """A number of any integer type.

    Raises:
        MalformedApdu: something else.
    """
    value = axdr.decode_whole(data).value
    if not isinstance(value, int) or isinstance(value, bool):
        raise MalformedApdu("no number")
    return value


def scaler_unit(value: Any) -> ScalerUnit:
    """A scaler_unit structure without its types: [scaler, unit].

    Raises:
        MalformedApdu: something else.
    """
    if (
        not isinstance(value, list)
        or len(value) != 2
        or not all(isinstance(n, int) for n in value)
        or not -128 <= value[0] <= 127
    ):
        raise MalformedApdu("no scaler and unit")
    return ScalerUnit(value[0], unit_from_dlms(value[1]))


def scaler_row(
    data: bytes, objects: tuple[CaptureObject, ...]
) -> dict[tuple[int, Obis], ScalerUnit]:
    """The row of a scaler profile by (class, logical name): its order is its own.

    Raises:
        MalformedApdu: no row of as many cells as capture objects.
    """
    rows = axdr.decode_whole(data).plain()
    if (
        not isinstance(rows, list)
        or not rows
        or not isinstance(rows[-1], list)
        or len(rows[-1]) != len(objects)
    ):
        raise MalformedApdu(f"no row of {len(objects)} scalers")
    return {
        (o.class_id, o.obis): scaler_unit(cell)
        for o, cell in zip(objects, rows[-1], strict=True)
        if isinstance(cell, list)
    }


def clock_rules(model: DlmsModel, timezone: str) -> ClockRules:
    """How meters of a model write time."""
    return ClockRules(
        UTC_TO_LOCAL if model.time.deviation == "utc-to-local" else LOCAL_TO_UTC,
        ZoneInfo(model.time.zone or timezone),
        model.time.deviation_holds_dst,
    )


_plans: OrderedDict[tuple[Any, ...], tuple[Profile, Plan]] = OrderedDict()
"""Plans by what they were made from; the profile's identity stands for its fields, so it is kept alive beside."""


def plan_of(learned: Learned, profile: Profile, rules: ClockRules) -> Plan:
    """The compiled plan for these capture objects and scalers.

    Raises:
        MalformedApdu: no column times the rows.
    """
    period = profile.period_s if learned.period <= 0 else learned.period
    key = (id(profile), learned.objects, learned.scalers, period, learned.sort, rules)
    found = _plans.get(key)
    if found is None:
        plan = Plan(
            profile.obis,
            learned.objects,
            {
                (obis, attribute): ScalerUnit(scaler, unit)
                for obis, attribute, scaler, unit in learned.scalers
            },
            period,
            rules,
            newest_first=learned.sort == NEWEST_FIRST,
            clock=profile.clock,
            status=profile.status,
            status_bits={
                int(bit): Flag[name.upper().replace("-", "_")]
                for bit, name in profile.status_bits.items()
            },
            epochs=frozenset((obis, 2) for obis in profile.epochs),
            null_is_same=profile.null_data == "same",
        )
        found = _plans[key] = profile, plan
        if len(_plans) > _KEPT_PLANS:
            _plans.popitem(last=False)
    else:
        _plans.move_to_end(key)
    return found[1]
