"""The built component through a lite nucleus to the local cloud: update, rollback, fall-back in the middle, nothing lost.

The nucleus' own connection is the thing's: mutual TLS to MiniStack, which holds it to the policy of the template. What
the simulated meters hold is compared with what the lake stores, and the table with the lake.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ministack")

from simulators.cloud import LocalCloud
from simulators.demo.count import dlms_account
from tests.conftest import eventually_sync
from tests.integration.greengrass.conftest import Nucleus
from tests.system.boxes import GATEWAY, Box, build
from tests.system.conftest import Fleet
from tests.system.test_greengrass_component import broken

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory, GATEWAY)


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalCloud]:
    with LocalCloud(tmp_path / "cloud") as running:
        yield running


def next_version(archive: Path) -> None:
    """The same program with another octet in it: another release, as an update has it."""
    raw = io.BytesIO()
    with (
        tarfile.open(archive) as old,
        tarfile.open(fileobj=raw, mode="w:gz", compresslevel=1) as new,
    ):
        for member in old.getmembers():
            file = old.extractfile(member)
            if file is not None:
                new.addfile(member, file)
        info = tarfile.TarInfo("site/edge_core/NEXT")
        new.addfile(info, io.BytesIO())
    archive.write_bytes(raw.getvalue())


def runs(box: Box, release: str) -> None:
    """Health says so, upward."""
    box.health(lambda h: h["greengrass"]["release"].startswith(release))


def test_the_main_job_to_the_local_cloud_through_update_rollback_and_fallback(
    tmp_path: Path, built: Path, local: LocalCloud, fleet: Fleet, civil: dict[str, str]
) -> None:
    assert local.uplink is not None
    host, _, port = local.uplink.url.partition(":")
    broker = {
        "host": host, "port": int(port), "ca": local.uplink.ca_file, "cert": local.uplink.cert_file,
        "key": local.uplink.key_file, "client_id": "dcu-0001",
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="gg") as folder:
        nucleus = Nucleus(Path(folder), "lite", broker)
        box = Box(tmp_path, nucleus, built, civil)
        try:
            box.deploy()
            box.start()
            eventually_sync(lambda: local.stored_readings("interval").cells > 100, 40)
            box.deploy("0.1.1", next_version)  # while the old one works, as lite installs
            assert box.terminate() == 0
            box.start()
            runs(box, "0.1.1-")
            box.ask("sweep", timeout_s=5)
            box.kill()
            box.version = "0.1.0"  # the nucleus goes back
            box.start()
            runs(box, "0.1.0-")
            assert box.terminate() == 0
            box.deploy("0.2.0", broken)  # a next version that never gets ready
            for _ in range(2):
                assert box.start(wait=False).wait(30) == 3
            box.start()  # ours goes back by itself
            box.health(lambda h: h["greengrass"]["fallback"].startswith("0.2.0-"))
            fleet.order("freeze")
            truth = tmp_path / "truth.jsonl"
            fleet.order("truth", file=str(truth))

            def lost() -> int:
                box.ask("sweep", timeout_s=5)
                return sum(
                    dlms_account(truth, kind, local.stored_readings(kind), set()).lost
                    for kind in ("interval", "midnight")
                )

            eventually_sync(lambda: lost() == 0, 60)
            eventually_sync(lambda: local.waiting() == 0, 20)
            for kind in ("interval", "midnight"):
                stored = local.stored_readings(kind)
                account = dlms_account(truth, kind, stored, set())
                assert account.captured > (1_000 if kind == "interval" else 10)
                assert (account.lost, account.doubled, account.altered) == (0, 0, 0), (
                    account.examples
                )
                eventually_sync(
                    lambda k=kind, s=stored: not any(local.check_dynamodb(k, s).values()), 20
                )
            eventually_sync(
                lambda: "release-fallback" in {a["code"] for a in local.queued_alarms().values()},
                20,
            )
            assert fleet.violations() == 0
            assert box.terminate() == 0
        finally:
            box.close()
            nucleus.kill()
