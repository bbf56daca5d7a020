"""Every DLMS model loads, is consistent in itself, and reads its recorded exchange octet for octet."""

from __future__ import annotations

import json
from zoneinfo import ZoneInfo

import pytest

from edge_core.config.models import DlmsModel, load_model, model_names
from edge_core.domain import ALARM_KINDS, Flag
from tests.contract.dlms_visit import FRAMES, association_of, visit


def dlms_models() -> list[DlmsModel]:
    models = [load_model(name) for name in model_names()]
    return [model for model in models if isinstance(model, DlmsModel)]


MODELS = dlms_models()


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_a_model_says_only_what_the_product_understands(model: DlmsModel) -> None:
    assert model.about.source
    if model.time.zone:
        ZoneInfo(model.time.zone)
    for kind, profile in model.profiles.items():
        for bit, flag in profile.status_bits.items():
            assert int(bit) in (1, 2, 4, 8, 16, 32, 64, 128)
            assert flag.upper().replace("-", "_") in Flag.__members__, (kind, flag)
        assert bool(profile.status) == bool(profile.status_bits), kind
    for name, push in model.push.items():
        for bit, alarm in push.alarms.items():
            assert 0 <= int(bit) < 128
            code, _, phases = alarm.partition(":")
            assert code in ALARM_KINDS, (name, bit)
            assert set(phases.split(",")) <= {"", "L1", "L2", "L3"}


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_a_model_reads_its_recorded_exchange(model: DlmsModel) -> None:
    folder = FRAMES / model.name / "visit"
    if not folder.is_dir():
        assert model.about.verified == "document", (
            f"{model.name} says {model.about.verified}: where is its exchange?"
        )
        return
    expected = json.loads((folder / "expected.json").read_text())
    requests = [bytes.fromhex(line) for line in (folder / "request.hex").read_text().split()]
    replies = [bytes.fromhex(line) for line in (folder / "reply.hex").read_text().split()]
    keys, title = expected.pop("keys"), bytes.fromhex(expected.pop("client_title"))
    exchange = visit(association_of(model, keys, title), model)
    request = next(exchange)
    document = None
    for wanted, reply in zip(requests, replies, strict=True):
        assert request == wanted
        try:
            request = exchange.send(reply)
        except StopIteration as done:
            document = done.value
    assert document == expected
