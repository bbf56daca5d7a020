"""Every DLMS model loads, is consistent in itself, and reads its recorded exchange octet for octet.

Polled models: an exchange with the simulated meter of that model (tests/data/frames/<model>/visit). Push-only models: the
captured frames that their `source` names.
"""

from __future__ import annotations

import json
import re
from zoneinfo import ZoneInfo

import pytest

from edge_core.acquisition.event_codes import vocabulary
from edge_core.config.models import DlmsModel, load_model, model_names
from edge_core.domain import ALARM_KINDS, Flag, Secret, obis_to_bytes
from edge_core.protocols.dlms import push
from edge_core.protocols.dlms.push_frames import PushFrames
from edge_core.protocols.dlms.security import SecurityContext
from edge_core.protocols.hdlc.frame import Frame
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
        assert bool(profile.log) == bool(profile.code) == kind.startswith("events"), kind
        if profile.log:
            assert any(log == profile.log for log, _ in vocabulary()), profile.log
    for name, setup in model.push.items():
        words = {str(setup.alert): setup.alarms} | setup.others
        if setup.carries == "alarms":
            assert all(words.values()), f"{name}: an alarm push whose bits mean nothing"
        assert set(setup.others) <= set(setup.columns), name
        for word, alarms in words.items():
            obis_to_bytes(word or "0.0.0.0.0.0")
            for bit, alarm in alarms.items():
                assert 0 <= int(bit) < 128
                code, _, phases = alarm.partition(":")
                assert code in ALARM_KINDS, (name, bit)
                assert set(phases.split(",")) <= {"", "L1", "L2", "L3"}
        if not model.profiles:
            assert setup.expected_s, "whose silence nobody notices"


def read_frames(model: DlmsModel) -> int:
    """Reads every frame that a push-only model names as its source; returns how many there are."""
    count = 0
    for pattern in re.findall(r"(?:tests/data/frames/)?(\w+_[\w*]+)", " ".join(model.about.source)):
        for path in sorted(FRAMES.glob(f"{pattern}.json")):
            case = json.loads(path.read_text())
            keys = case.get("keys", {})
            context = None
            if keys:
                gak = keys.get("authentication")
                context = SecurityContext(
                    0,
                    Secret(bytes.fromhex(keys["encryption"])),
                    Secret(bytes.fromhex(gak)) if gak else None,
                )
            octets = b"".join(bytes.fromhex(frame) for frame in case["frames"])
            if case["framing"] == "llc":
                octets = Frame(b"\x41", b"\x08\x83", 0x13, octets).to_bytes()
            for envelope in PushFrames().feed(octets):
                schemas = push.schemas_of(model.push)
                found = push.read(envelope.open(context, envelope.title).plain, schemas)
                assert found.readings, path.name
                (setup,) = model.push.values()
                assert envelope.protection == setup.protection, path.name
                count += 1
    return count


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.name)
def test_a_model_reads_its_recorded_exchange(model: DlmsModel) -> None:
    if not model.profiles:
        assert read_frames(model) >= 1, f"{model.name} names no captured frame among its sources"
        return
    folder = FRAMES / model.name / "visit"
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
