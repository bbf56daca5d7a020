"""Four components on one data directory, and the change from one to four and back with a backlog: nothing is lost."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_core.gateway.split import name_of
from edge_core.greengrass.settings import ROLES
from edge_core.journal.datadir import DataDirectory
from edge_core.transports.control import ask
from tests.conftest import Mosquitto, eventually_sync
from tests.integration.greengrass.conftest import Nucleus
from tests.integration.uplink.conftest import Cloud
from tests.system.boxes import FOUR, GATEWAY, Box, build
from tests.system.conftest import MIXED_FLEET, Fleet

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory, GATEWAY, *FOUR)


@pytest.fixture
def fleet(tmp_path: Path, civil: dict[str, str]) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, MIXED_FLEET, civil)
    yield fleet
    fleet.close()


class Site:
    """One box with the components that are deployed on it now."""

    def __init__(self, folder: Path, nucleus: Nucleus, built: Path, env: dict[str, str]) -> None:
        self.nucleus = nucleus
        self.boxes = {name: Box(folder, nucleus, built, env, name) for name in (GATEWAY, *FOUR)}
        self.running: list[Box] = []
        self.directory = DataDirectory(folder / "data")
        for box in self.boxes.values():
            box.deploy()

    def run(self, *names: str) -> None:
        """What a deployment with these components leaves running."""
        for box in self.running:
            assert box.terminate() == 0
        self.running = [self.boxes[name] for name in names]
        for box in self.running:
            box.start()

    def ask_of(self, box: Box, do: str, **what: Any) -> Any:
        roles = ROLES[box.component] or ("uplink",)
        try:
            return ask(self.directory.control_of(name_of(roles)), {"do": do, **what}, 20.0)
        except Exception:
            return None

    def ask(self, do: str, wait_s: float = 20.0, **what: Any) -> Any:
        return [self.ask_of(box, do, **what) for box in self.running]

    def offline(self, away: bool) -> None:
        times = 1_000_000 if away else 0
        self.nucleus.fail("PublishToIoTCore", "ServiceError", times=times)

    def waiting(self) -> int:
        """Segments of all journals that wait for the cloud."""
        answers = [self.ask_of(box, "journal-status") for box in self.running]
        return sum(a["segments_waiting"] for a in answers if a)

    def close(self) -> None:
        for box in self.boxes.values():
            box.close()


def pss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


@pytest.fixture
def site(
    tmp_path: Path, built: Path, mosquitto: Mosquitto, civil: dict[str, str], fleet: Fleet
) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="gg") as folder:
        nucleus = Nucleus(Path(folder), "lite", mosquitto.port)
        site = Site(tmp_path, nucleus, built, civil)
        yield site
        site.close()
        nucleus.kill()


def test_from_one_component_to_four_and_back_with_a_backlog(
    site: Site, cloud: Cloud, fleet: Fleet, settled: Any, tmp_path: Path
) -> None:
    cloud.max_bytes = 4_800
    site.run(GATEWAY)
    eventually_sync(lambda: len(cloud.arrived) > 2, 30)
    site.offline(True)
    site.ask("sweep", timeout_s=5)
    site.ask("flush")
    eventually_sync(lambda: site.waiting() > 0, 20)

    site.run(*FOUR)  # the readers take over their ledgers, the uplink sends what one component left
    components = site.boxes["io.opendcu.Uplink"].artifacts.parents[1]
    assert sorted(p.name for p in components.iterdir()) == sorted((GATEWAY, *FOUR))
    for box in site.running:
        eventually_sync(lambda b=box: site.ask_of(b, "ping"), 20)
    site.ask("sweep", timeout_s=5)
    site.ask("flush")
    with cloud.lock:
        before = set(cloud.cells)
    site.offline(False)

    def came() -> set[str]:
        """Kinds of meters whose backlog arrives."""
        with cloud.lock:
            return {identity[0][:2] for identity, _ in cloud.cells.keys() - before}

    eventually_sync(lambda: came() >= {"GP", "MB"}, 90)
    site.boxes["io.opendcu.DlmsReader"].kill()  # and comes back by its nucleus
    site.boxes["io.opendcu.DlmsReader"].start()
    health = site.boxes["io.opendcu.Uplink"].health(
        lambda h: h["greengrass"]["component"] == FOUR[3]
    )
    assert set(health["greengrass"]["components"]) == {GATEWAY, *FOUR}
    if folder := os.environ.get("OPENDCU_FIGURES"):  # PSS, where it is asked for
        figures = {box.component: pss_kb(box.processes[-1].pid) for box in site.running}
        Path(folder, "pss-four.json").write_text(json.dumps(figures))

    site.offline(True)
    site.ask("sweep", timeout_s=5)
    site.ask("flush")
    site.run(GATEWAY)
    if folder := os.environ.get("OPENDCU_FIGURES"):
        site.ask("sweep", timeout_s=5)
        figures = {box.component: pss_kb(box.processes[-1].pid) for box in site.running}
        Path(folder, "pss-one.json").write_text(json.dumps(figures))
    site.offline(False)
    truth = settled(site.boxes[GATEWAY], 60.0)
    assert len(truth) > 3_000
    for box in site.running:
        assert box.terminate() == 0
    site.running = []
