"""Provisioning rehearsed against the local cloud: claim, renewal, and everything that AWS refuses."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ministack")

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from simulators.cloud import LocalCloud
from simulators.cloud.local import Uplink

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
OPENDCU = Path(sys.executable).with_name("opendcu")
LIFE_S = 3 * 86_400.0


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    folder = tmp_path_factory.mktemp("cloud")
    with LocalCloud(folder, certificate_life_s=LIFE_S) as running:
        yield running


@pytest.fixture(scope="module")
def claim(cloud: LocalCloud) -> Uplink:
    return cloud.make_claim()


class Box:
    """A box out of the factory: a configuration, a claim certificate, nothing else."""

    def __init__(self, folder: Path, cloud: LocalCloud, claim: Uplink, name: str) -> None:
        self.folder, self.name, self.claim = folder, name, claim
        self.config = folder / "gateway.toml"
        self.config.write_text(f"""\
[gateway]
id = "{name}"
data_dir = "data"
[uplink]
kind = "aws"
url = "{claim.url}"
ca_file = "{claim.ca_file}"
cert_file = "pki/gateway.crt"
key_file = "pki/gateway.key"
""")
        self.certificate, self.key = folder / "pki/gateway.crt", folder / "pki/gateway.key"

    def run(self, *arguments: str) -> tuple[int, dict[str, Any], str]:
        done = subprocess.run(
            [OPENDCU, "provision", "-c", self.config, "--json", *arguments],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        return done.returncode, json.loads(done.stdout or "{}"), done.stderr

    def obtain(self) -> tuple[int, dict[str, Any], str]:
        return self.run("--claim-cert", self.claim.cert_file, "--claim-key", self.claim.key_file)

    def serial(self) -> int:
        return x509.load_pem_x509_certificate(self.certificate.read_bytes()).serial_number


@pytest.fixture
def box(tmp_path: Path, cloud: LocalCloud, claim: Uplink, request: pytest.FixtureRequest) -> Box:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    return Box(tmp_path, cloud, claim, f"dcu-{name}")


def principals(cloud: LocalCloud, name: str) -> dict[str, str]:
    """Certificates of a thing, with their status."""
    iot = cloud.client("iot")
    out = {}
    for arn in iot.list_thing_principals(thingName=name)["principals"]:
        number = arn.rpartition("/")[2]
        out[number] = iot.describe_certificate(certificateId=number)["certificateDescription"][
            "status"
        ]
    return out


def test_a_box_claims_its_certificate_and_the_key_stays(cloud: LocalCloud, box: Box) -> None:
    cloud.expect(box.name)
    code, told, _ = box.obtain()
    assert code == 0, told
    assert (told["gateway"], told["done"], told["next"]) == (box.name, "obtained", False)
    assert abs(told["renew_at"] - told["begins"] - LIFE_S * 2 / 3) < 2
    for path in (box.key.resolve(), box.certificate.resolve()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((box.folder / "pki/gateway.pki").stat().st_mode) == 0o700
    key = serialization.load_pem_private_key(box.key.read_bytes(), None)
    certificate = x509.load_pem_x509_certificate(box.certificate.read_bytes())
    assert certificate.public_key() == key.public_key()
    assert list(principals(cloud, box.name).values()) == ["ACTIVE"]
    assert b"PRIVATE" not in cloud.ministack.log.read_bytes()
    assert not list((box.folder / "pki").rglob("draft*"))
    code, told, _ = box.run()
    assert (code, told["done"]) == (0, "shown")


def test_renewal_changes_both_files_in_one_step_and_retires_what_went_before(
    cloud: LocalCloud, box: Box
) -> None:
    cloud.expect(box.name)
    assert box.obtain()[0] == 0
    serials, links = [box.serial()], []
    for _ in range(2):
        code, told, err = box.run("--renew")
        assert (code, told["done"]) == (0, "renewed"), err
        serials.append(box.serial())
        links.append(os.readlink(box.folder / "pki/gateway.pki/current"))
    assert len(set(serials)) == 3
    assert len(set(links)) == 2
    held = principals(cloud, box.name)
    assert len(held) == 2  # the one in use, and the one that obtained it
    assert len([p for p in (box.folder / "pki/gateway.pki").iterdir() if p.name.isdigit()]) == 1


def test_files_of_a_person_are_adopted_at_the_first_renewal(cloud: LocalCloud, box: Box) -> None:
    by_hand = cloud.add_gateway(box.name)
    box.certificate.parent.mkdir()
    box.certificate.write_bytes(Path(by_hand.cert_file).read_bytes())
    box.key.touch(0o600)
    box.key.write_bytes(Path(by_hand.key_file).read_bytes())
    before = box.serial()
    code, _, err = box.run("--renew")
    assert code == 0, err
    assert box.serial() != before
    assert box.certificate.is_symlink()
    assert box.key.is_symlink()


def test_a_claim_invents_no_gateway_and_takes_over_none(cloud: LocalCloud, box: Box) -> None:
    code, told, _ = box.obtain()
    assert (code, told["error"]) == (1, "Refused")
    assert "AccessDenied" in told["message"]
    assert "register" in told["message"]
    assert not box.certificate.exists()
    cloud.expect(box.name)
    assert box.obtain()[0] == 0
    (box.folder / "thief").mkdir()
    thief = Box(box.folder / "thief", cloud, box.claim, box.name)
    code, told, _ = thief.obtain()
    assert (code, told["error"]) == (1, "Refused")
    assert list(principals(cloud, box.name).values()) == ["ACTIVE"]


def test_a_gateway_renews_under_its_own_name_only(cloud: LocalCloud, box: Box) -> None:
    cloud.expect(box.name)
    assert box.obtain()[0] == 0
    cloud.expect(f"{box.name}-other")
    box.config.write_text(box.config.read_text().replace(box.name, f"{box.name}-other"))
    code, told, _ = box.run("--renew")
    assert code == 1
    assert told["error"] in ("BrokerUnreachable", "Refused")
    assert principals(cloud, f"{box.name}-other") == {}


def test_an_attempt_that_was_cut_off_goes_on_with_its_key(cloud: LocalCloud, box: Box) -> None:
    code, _, _ = box.obtain()  # the thing is not expected yet: the request was signed, then refused
    assert code == 1
    draft = (box.folder / "pki/gateway.pki/draft.pem").read_bytes()
    cloud.expect(box.name)
    assert box.obtain()[0] == 0
    assert box.key.read_bytes() == draft


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('kind = "file"', "needs kind"),
        ('url = "localhost:9"', "localhost:9"),
    ],
)
def test_what_stands_in_the_way_is_told(
    cloud: LocalCloud, box: Box, change: str, told: str
) -> None:
    text = box.config.read_text()
    key = change.partition(" ")[0]
    box.config.write_text(
        "\n".join(change if line.startswith(key) else line for line in text.splitlines())
    )
    code, document, _ = box.obtain()
    assert code in (1, 2)
    assert told in document["message"]


def test_a_claim_key_that_others_may_read_is_refused(
    cloud: LocalCloud, box: Box, tmp_path: Path
) -> None:
    key = tmp_path / "claim.key"
    key.write_bytes(Path(box.claim.key_file).read_bytes())
    key.chmod(0o644)
    code, document, _ = box.run("--claim-cert", box.claim.cert_file, "--claim-key", str(key))
    assert code == 2
    assert "chmod 600" in json.dumps(document)
