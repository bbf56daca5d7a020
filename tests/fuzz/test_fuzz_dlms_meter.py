"""A meter that knows the keys and lies: whatever its values are, the driver reads them or raises MeterError."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_core.acquisition.drivers import ProfileRequest
from edge_core.acquisition.drivers.dlms.learned import capture_objects, scaler_row, whole_number
from edge_core.acquisition.drivers.dlms.registers import object_list, text_of
from edge_core.domain import as_list
from edge_core.errors import MeterError, ProtocolError
from edge_core.protocols.dlms import axdr
from edge_core.protocols.dlms.axdr import Data
from edge_core.protocols.dlms.cosem import CaptureObject
from edge_core.protocols.dlms.datetime import ClockRules
from edge_core.protocols.dlms.profile import Plan, ScalerUnit
from simulators.dlms import objects
from tests.integration.dlms.conftest import Bench, bench  # noqa: F401 the fixture

LEAVES = st.one_of(
    st.just(axdr.NULL),
    st.integers(0, 255).map(axdr.unsigned),
    st.integers(-128, 127).map(axdr.integer),
    st.integers(0, 65535).map(axdr.long_unsigned),
    st.integers(0, 2**32 - 1).map(axdr.double_long_unsigned),
    st.integers(0, 255).map(axdr.enum),
    st.binary(max_size=14).map(axdr.octet_string),
    st.binary(min_size=6, max_size=6).map(axdr.octet_string),
    st.binary(min_size=12, max_size=12).map(axdr.octet_string),
    st.text(max_size=4).map(axdr.utf8_string),
    st.floats(width=32, allow_nan=True).map(axdr.float32),
    st.text("01", max_size=20).map(axdr.bits),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=5).flatmap(
        lambda items: st.sampled_from([axdr.structure(*items), axdr.array(items)])
    ),
    max_leaves=20,
)
ENCODED = st.one_of(TREES.map(axdr.encode), st.binary(max_size=40))
OBJECTS = st.lists(
    st.builds(
        CaptureObject,
        st.sampled_from([1, 3, 4, 5, 7, 8]),
        st.sampled_from(["0.0.1.0.0.255", "1.0.1.8.0.255", "0.0.96.10.1.255", "1.0.1.6.0.255"]),
        st.integers(0, 7),
        st.integers(0, 3),
    ),
    max_size=8,
)


@given(ENCODED, OBJECTS)
def test_what_is_learned_is_understood_or_refused(data: bytes, named: list[CaptureObject]) -> None:
    for learn in (capture_objects, whole_number, text_of):
        try:
            learn(data)
        except ProtocolError:
            continue
    for learn_more in (
        lambda: scaler_row(data, tuple(named)),
        lambda: object_list(axdr.decode_whole(data).plain()),
    ):
        try:
            learn_more()
        except ProtocolError:
            continue


def rows_of_trees(width: int) -> st.SearchStrategy[Data]:
    row = st.lists(TREES, min_size=max(0, width - 1), max_size=width + 1).map(
        lambda items: axdr.structure(*items)
    )
    return st.lists(row, max_size=6).map(axdr.array)


@settings(max_examples=300)
@given(st.data())
def test_any_rows_under_any_capture_objects(data: st.DataObject) -> None:
    named = data.draw(OBJECTS)
    scalers = {(o.obis, o.attribute): ScalerUnit(1, "Wh") for o in named}
    try:
        plan = Plan("1.0.99.1.0.255", named, scalers, 900, ClockRules(), status="0.0.96.10.1.255")
        for _ in range(2):
            for part in plan.decode(axdr.encode(data.draw(rows_of_trees(len(named))))):
                assert len(part.columns) == len(part.layout.cols)
                for column, values in zip(part.layout.cols, part.columns, strict=True):
                    assert len(values) == len(part.times)
                    for value in as_list(values):
                        assert value is None or isinstance(
                            value, str if column.unit == "hex" else int
                        )
    except ProtocolError:
        return


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(12))
async def test_a_meter_with_the_keys_and_random_values(
    bench: Any,  # noqa: F811 the fixture
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    import random

    rng = random.Random(seed)
    honest = objects.read

    def lying(*args: Any) -> bytes | int:
        if rng.random() < 0.7:
            return honest(*args)
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randrange(1, 20)
        if kind == 1:
            return rng.randbytes(rng.randrange(0, 60))
        value = honest(*args)
        if isinstance(value, int) or not value:
            return value
        at = rng.randrange(len(value))
        return value[:at] + rng.randbytes(1) + value[at + 1 :]

    b: Bench = await bench(count=1)
    monkeypatch.setattr(objects, "read", lying)
    raised: list[MeterError] = []
    for _ in range(4):
        driver = b.driver()
        try:
            for what in (
                "nameplate",
                "clock",
                "instantaneous",
                "1.0.1.8.0.255",
                "1.0.99.1.0.255:3",
            ):
                await driver.read_registers(what)
            await driver.clock_offset()
            for kind in ("interval", "midnight", "billing", "events-0"):
                for by_entry in (False, True):
                    await driver.read_profile(
                        ProfileRequest(kind, int(b.clock.now()) - 7200, by_entry=by_entry)
                    )
        except MeterError as error:
            raised.append(error)
        finally:
            await driver.close()
    assert all(error.meter == b.meter.id and error.during for error in raised)
