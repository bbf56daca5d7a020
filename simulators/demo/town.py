"""The demo itself: everything started as the real processes on loopback, faults played, and a count at the end.

Only civil time is scaled (`OPENDCU_CLOCK`); time-outs, commits, TLS, acks and latencies are real. Nothing here looks
into the gateway: it is started, killed and stopped like any process, asked over its control socket, and judged by what
the meters hold and what the cloud stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import random
import resource
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_core.domain import alarm_id
from edge_core.errors import OpenDCUError
from edge_core.transports.control import ask
from simulators.cloud import LocalCloud
from simulators.demo import count
from simulators.demo.alarms import AlarmConsumer
from simulators.demo.plan import LASTS_S, Fault, own_programme
from simulators.demo.processes import FleetProcess, GatewayProcess
from simulators.demo.proxy import Relay
from simulators.demo.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

DRAIN_S = 15.0
DCU = "dcu-0001"
MODBUS_MODELS = ("eastron-sdm630", "schneider-iem3155", "abb-b23-b24")
OPEN_END_S = 600.0
GRACE_S = 0.2


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; seconds are real ones."""

    meters: int = 70
    run_s: float | None = 60.0
    seed: int = 1
    faults: tuple[Fault, ...] = ()
    speed: float = 240.0
    history: str = "2d"


@dataclass(slots=True)
class Outcome:
    """What happened, as `--json` prints it, and why it does not agree."""

    document: dict[str, Any]
    disagreements: list[str] = field(default_factory=list)


class Town:
    """One demo in one folder."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.folder, self.options = folder, options
        self._rng = random.Random(options.seed)
        self._screen = Screen(self._key)
        self._loop = asyncio.get_running_loop()
        self._quit = asyncio.Event()
        self._played: list[dict[str, Any]] = []
        self._gasps: list[dict[str, Any]] = []
        self._kills: list[float] = []
        self._cuts: list[tuple[float, float]] = []  # real seconds between which the uplink was cut
        self._tasks: set[asyncio.Task[None]] = set()
        self._captured = self._stored_messages = 0
        self._verdicts: dict[str, dict[str, Any]] = {}
        self._began = 0.0
        self._push_port = _free_port(socket.SOCK_DGRAM)
        modbus = max(1, options.meters // 7) if options.meters > 1 else 0
        self.modbus, self.dlms = modbus, options.meters - modbus
        self.run_s = options.run_s or OPEN_END_S

    # --- life

    async def run(self) -> Outcome:
        """Start everything, play, drain, count, stop everything.

        Raises:
            CloudError, RuntimeError: a part did not start; its log is named.
        """
        wall = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._screen.close)
            self._screen.say(0, "starting the local cloud (MiniStack, cloud/template.yaml) ...")
            self.cloud = await asyncio.to_thread(LocalCloud(self.folder / "cloud", dcu=DCU).start)
            stack.callback(self.cloud.stop)
            consumer = AlarmConsumer(self.cloud)
            stack.callback(consumer.stop)
            assert self.cloud.uplink is not None
            self.relay = Relay(int(self.cloud.uplink.url.rpartition(":")[2]))
            await self.relay.start()
            stack.push_async_callback(self.relay.close)

            self.env = self._environment()
            spec = self._write_fleet()
            self._screen.say(0, f"starting {self.dlms} DLMS and {self.modbus} Modbus meters ...")
            self.fleet = await FleetProcess.start(spec, self.folder / "fleet", self.env)
            stack.push_async_callback(self.fleet.stop)
            self.gateway = GatewayProcess(self._write_gateway(), self.env)
            await self.gateway.start()
            stack.push_async_callback(self.gateway.kill)
            await self._until(self._answers, 20.0, "the gateway does not answer")

            self._began = time.monotonic()
            self._screen.say(0, f"all runs; faults begin. Console: {self.console}")
            watch = self._spawn(self._watch(consumer))
            programme = self.options.faults or tuple(own_programme(self.run_s))
            for fault in programme:
                self._spawn(self._play_at(fault))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.run_s if self.options.run_s else None):
                    await self._quit.wait()
            outcome = await self._finish(consumer, wall)
            watch.cancel()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        return outcome

    def _environment(self) -> dict[str, str]:
        """Civil time runs `speed` times as fast and reaches real now at the end of the run."""
        real0 = time.time()  # noqa: TID251 the demo anchors the scaled clock of everybody else
        sim0 = real0 + self.run_s - self.run_s * self.options.speed
        self._sim = real0, sim0, self.options.speed
        text = f"{real0:.3f}:{sim0:.3f}:{self.options.speed}"
        return os.environ | {"OPENDCU_CLOCK": text, "PYTHONUNBUFFERED": "1"}

    def civil(self) -> float:
        """Civil now."""
        real0, sim0, speed = self._sim
        return sim0 + (time.time() - real0) * speed  # noqa: TID251 the same anchor

    def elapsed(self) -> float:
        """Real seconds since the faults began."""
        return time.monotonic() - self._began if self._began else 0.0

    def _write_fleet(self) -> Path:
        """Two thirds Indian three-phase meters, the rest IDIS, a part of them behind HDLC; Modbus of three makers."""
        india = max(1, self.dlms * 2 // 3)
        idis = self.dlms - india
        hdlc = idis // 2
        groups = [("is15959-3ph", india, "feeder-1", "wrapper", "GP1000001")]
        groups.append(("idis", idis - hdlc, "feeder-2", "wrapper", "ID2000001"))
        groups.append(("idis", hdlc, "feeder-3", "hdlc", "HD3000001"))
        text = (
            f'[fleet]\nseed = {self.options.seed}\nhistory = "{self.options.history}"\n'
            "by_address = true\n"
        )
        for model, size, line, framing, first in groups:
            if size:
                text += (
                    f'\n[[dlms]]\ncount = {size}\nmodel = "{model}"\nline = "{line}"\n'
                    f'framing = "{framing}"\nid = "{first}"\n'
                )
        left = self.modbus
        for k, model in enumerate(MODBUS_MODELS):
            size = -(-left // (len(MODBUS_MODELS) - k))
            left -= size
            if size:
                text += (
                    f'\n[[modbus]]\ncount = {size}\nmodel = "{model}"\nline = "bus-{k + 1}"\n'
                    f'id = "MB{k + 4}000001"\n'
                )
        path = self.folder / "fleet.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def _write_gateway(self) -> Path:
        """gateway.toml, as a utility would write it."""
        assert self.cloud.uplink is not None
        self._console_port = 8480 if _is_free(8480) else _free_port()
        self.console = f"http://127.0.0.1:{self._console_port}/"
        uplink = self.cloud.uplink.toml().replace(
            self.cloud.uplink.url, f"localhost:{self.relay.port}"
        )
        lines = (self.folder / "fleet" / "lines.toml").read_text(encoding="utf-8")
        lines = lines.replace('framing = "wrapper"', 'framing = "wrapper"\nconcurrency = 50')
        lines = lines.replace('framing = "hdlc"', 'framing = "hdlc"\nconcurrency = 50')
        text = f"""\
[gateway]
id = "{DCU}"
data_dir = "{self.folder / "data"}"
timezone = "Asia/Kolkata"

{uplink}
[schedule]
interval_reads = "every 1h"
midnight_reads = "00:05"
events = "every 6h"

[fleet]
file = "fleet/meters.csv"

[keys]
file = "fleet/keys.toml"

[push]
listen = ["udp://127.0.0.1:{self._push_port}", "tcp://127.0.0.1:{self._push_port}"]

[console]
listen = "127.0.0.1:{self._console_port}"

{lines}"""
        path = self.folder / "gateway.toml"
        path.write_text(text, encoding="utf-8")
        return path

    # --- watching

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _key(self, what: str) -> None:
        """From the keyboard's thread."""
        if what == "quit":
            self._loop.call_soon_threadsafe(self._quit.set)
        else:
            fault = Fault(what, self.elapsed(), LASTS_S[what])
            self._loop.call_soon_threadsafe(lambda: self._spawn(self._play_at(fault)))

    async def _ask(self, wait_s: float = 3.0, **request: Any) -> Any:
        """The gateway's control socket; None when it does not answer."""
        try:
            return await asyncio.to_thread(
                ask, self.folder / "data" / "control.sock", request, wait_s
            )
        except (OpenDCUError, OSError, TimeoutError):
            return None

    async def _answers(self) -> bool:
        return await self._ask(do="ping") is not None

    async def _until(self, condition: Any, within_s: float, otherwise: str) -> None:
        end = time.monotonic() + within_s
        while not await condition():
            if time.monotonic() > end:
                raise RuntimeError(f"{otherwise}: see {self.folder}/gateway.log")
            await asyncio.sleep(0.05)

    async def _watch(self, consumer: AlarmConsumer) -> None:
        """Once a second: measure, look, draw; a gateway that ended by itself is started again, and told."""
        while True:
            self.gateway.measure()
            if self.gateway.wanted and not self.gateway.running:
                self._screen.say(
                    self.elapsed(), f"gateway ended by itself, exit {self.gateway.exit_code}"
                )
                await self.gateway.start()
            overview = await self._ask(do="overview")
            status = await self.fleet.order("status")
            self._captured = sum(status["captured"].get(kind, 0) for kind in count.KINDS)
            self._stored_messages = await asyncio.to_thread(self._count_objects)
            self._screen.draw(
                {
                    "overview": overview,
                    "civil": self.civil(),
                    "elapsed": self.elapsed(),
                    "run_s": self.run_s,
                    "speed": self.options.speed,
                    "console": self.console,
                    "captured": self._captured,
                    "messages": self._stored_messages,
                    "alarms": len(consumer.arrived),
                    "restarts": self.gateway.restarts,
                }
            )
            await asyncio.sleep(1.0)

    def _count_objects(self) -> int:
        return sum(1 for _ in self.cloud.bucket.glob("*/day=*/dcu=*/*-*.json"))

    # --- faults

    async def _play_at(self, fault: Fault) -> None:
        await asyncio.sleep(max(0.0, fault.at_s - self.elapsed()))
        self._played.append(
            {"at": round(self.elapsed(), 1), "what": fault.what, "for": fault.for_s}
        )
        self._screen.say(self.elapsed(), f"FAULT {fault.what} for {fault.for_s:g} s")
        await getattr(self, "_" + fault.what.replace("-", "_"))(fault)
        self._screen.say(self.elapsed(), f"      {fault.what} is over")

    def _some(self, share: float) -> list[str]:
        """Ids of a few DLMS meters."""
        names = [f"GP{1_000_001 + k}" for k in range(max(1, self.dlms * 2 // 3))]
        return self._rng.sample(names, max(1, int(len(names) * share)))

    async def _uplink_cut(self, fault: Fault) -> None:
        self.relay.set_cut(True)
        began = time.time()  # noqa: TID251 compared with the pushes' real stamps
        self._cuts.append((began, float("inf")))
        await asyncio.sleep(fault.for_s)
        self.relay.set_cut(False)
        self._cuts[self._cuts.index((began, float("inf")))] = (began, time.time())  # noqa: TID251

    async def _kill_gateway(self, fault: Fault) -> None:
        self._kills.append(time.time())  # noqa: TID251 compared with the pushes' real stamps
        await self.gateway.kill()
        await asyncio.sleep(fault.for_s)
        await self.gateway.start()
        await self._until(self._answers, 20.0, "the gateway does not come back")

    async def _storm_of(self, meters: list[str] | int, within_s: float) -> None:
        to = f"udp://127.0.0.1:{self._push_port}"
        file = self.folder / f"gasps-{len(self._gasps)}.json"
        await self.fleet.order("storm", meters=meters, to=to, within=within_s, file=str(file))
        self._gasps.extend(_reports(file))

    async def _gasp_storm(self, fault: Fault) -> None:
        await self._storm_of(self.dlms, max(0.1, fault.for_s))

    async def _fault_on(self, what: str, fault: Fault, share: float) -> None:
        for meter in self._some(share):
            await self.fleet.order("fault", meter=meter, what=what, **{"for": fault.for_s})
        await asyncio.sleep(fault.for_s)

    async def _meter_silent(self, fault: Fault) -> None:
        await self._fault_on("silent", fault, 0.05)

    async def _garbage(self, fault: Fault) -> None:
        await self._fault_on("garbage", fault, 0.1)

    async def _wrong_key(self, fault: Fault) -> None:
        await self._fault_on("wrong-key", fault, 0.03)

    async def _clock_jump(self, fault: Fault) -> None:  # noqa: ARG002 a jump has no length
        for meter in self._some(0.05):
            await self.fleet.order("step-back", meter=meter, periods=2)

    async def _power_cut(self, fault: Fault) -> None:
        """A feeder without power: its meters gasp their last, and the concentrator goes out a second later."""
        file = self.folder / f"gasps-{len(self._gasps)}.json"
        await self.fleet.order(
            "outage",
            meters=self._some(0.3),
            to=f"udp://127.0.0.1:{self._push_port}",
            file=str(file),
            **{"for": fault.for_s + 4.0},
        )
        self._gasps.extend(_reports(file))
        await asyncio.sleep(1.0)
        await self._kill_gateway(fault)

    async def _disk_full(self, fault: Fault) -> None:
        """A file size limit on the running gateway: every write that would grow a file fails."""
        process = self.gateway.pid
        if process is None:
            return
        old = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (4096, old[1]))
        await asyncio.sleep(fault.for_s)
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_FSIZE, old)

    # --- the end

    async def _finish(self, consumer: AlarmConsumer, wall: float) -> Outcome:
        """Faults stop, the meters capture nothing more, the last rows are read, the backlog drains, then counts."""
        ended = self.elapsed()
        self.relay.set_cut(False)
        if not self.gateway.running:
            await self.gateway.start()
        await self.fleet.order("freeze")
        for meter in sorted(self._modbus_ids()):  # each answer would be one more sample
            await self.fleet.order("fault", meter=meter, what="silent", **{"for": 3600.0})
        simulated = ended * self.options.speed
        self._screen.say(
            self.elapsed(), "meters frozen; the last rows are read, the backlog drains"
        )
        deadline = time.monotonic() + DRAIN_S
        await self._until(self._answers, 10.0, "the gateway does not answer")
        while True:
            swept = await self._ask(12.0, do="sweep", timeout_s=8.0)
            overview = await self._ask(do="overview")
            if swept and overview and swept["read"] >= self.dlms:
                break
            if time.monotonic() > deadline:
                break
        await self._drained(deadline)
        code = await self.gateway.stop()
        drained_s = self.elapsed() - ended
        self._screen.say(self.elapsed(), f"drained in {drained_s:.1f} s; counting")
        return await asyncio.to_thread(
            self._count, consumer, code, time.monotonic() - wall, simulated,
            await self._truth(), drained_s,
        )  # fmt: skip

    async def _drained(self, deadline: float) -> None:
        """Wait until nothing waits in the gateway, the queue or the alarm queues."""
        quiet = 0
        while time.monotonic() < deadline and quiet < 2:
            overview = await self._ask(do="overview")
            journal = (overview or {}).get("journal", {})
            waiting = sum(
                journal.get(name, 1)
                for name in ("segments_waiting", "alarms_waiting", "notes_waiting")
            )
            unacked = (overview or {}).get("uplink", {}).get("unacked", 1)
            queued = await asyncio.to_thread(self.cloud.waiting)
            quiet = quiet + 1 if not waiting and not unacked and not queued else 0
            await asyncio.sleep(0.2)

    async def _truth(self) -> Path:
        path = self.folder / "truth.jsonl"
        await self.fleet.order("truth", file=str(path))
        for kind in count.KINDS:
            await self._judge_samples(kind)
        return path

    async def _judge_samples(self, kind: str) -> None:
        """The fleet judges every stored sample by the register values of its instant."""
        path = self.folder / f"samples-{kind}.jsonl"
        modbus = self._modbus_ids()

        def write() -> None:
            with path.open("w", encoding="utf-8") as out:
                for sample in count.samples_of(self.cloud.bucket, kind, modbus):
                    out.write(json.dumps(sample) + "\n")

        await asyncio.to_thread(write)
        self._verdicts[kind] = await self.fleet.order("verify", file=str(path))

    def _modbus_ids(self) -> set[str]:
        with (self.folder / "fleet" / "meters.csv").open(encoding="utf-8") as file:
            return {row["id"] for row in csv.DictReader(file) if row["line"].startswith("bus-")}

    def _count(
        self,
        consumer: AlarmConsumer,
        code: int,
        wall_s: float,
        simulated_s: float,
        truth: Path,
        drained_s: float,
    ) -> Outcome:
        modbus = self._modbus_ids()
        committed = count.committed_samples(self.folder / "data" / "journal.db", modbus)
        accounts, table = {}, {}
        octets = readings = messages = 0
        for kind in count.KINDS:
            stored = self.cloud.stored_readings(kind)
            account = count.dlms_account(truth, kind, stored, modbus)
            count.add_modbus(account, committed[kind], stored, modbus)
            verdict = self._verdicts[kind]
            account.altered += verdict["wrong_count"]
            account.examples += [f"wrong sample: {w}" for w in verdict["wrong"][:3]]
            accounts[kind] = account
            table[kind] = self.cloud.check_dynamodb(kind, stored)
            readings += len(stored.readings)
            messages += stored.messages
            octets += sum(
                p.stat().st_size
                for p in self.cloud.bucket.glob(f"{kind}/day=*/dcu=*/*-*.json")
                if not p.name.endswith(".meta.json")
            )
        alarms, gasp_ms = self._count_gasps(consumer)
        total = {name: sum(getattr(a, name) for a in accounts.values()) for name in
                 ("lost", "doubled", "altered", "repeated")}  # fmt: skip
        document = {
            "meters": {"dlms": self.dlms, "modbus": self.modbus},
            "captured": {kind: a.captured for kind, a in accounts.items()},
            "stored": {kind: a.stored for kind, a in accounts.items()},
            "lost": total["lost"],
            "doubled": total["doubled"],
            "altered": total["altered"],
            "repeated": total["repeated"],
            "table": table,
            "alarms": alarms,
            "gasp_ms": gasp_ms,
            "faults": sorted(self._played, key=lambda f: f["at"]),
            "gateway": {
                "rss_mb": round(self.gateway.peak_mb, 1),
                "cpu_s": round(self.gateway.cpu_s, 2),
                "restarts": self.gateway.restarts,
            },
            "uplink": {
                "messages": messages,
                "bytes": octets,
                "bytes_per_reading": round(octets / readings, 2) if readings else None,
            },
            "drained_s": round(drained_s, 1),
            "wall_s": round(wall_s, 1),
            "simulated_s": round(simulated_s),
        }
        return Outcome(document, self._disagreements(document, accounts, code))

    def _count_gasps(self, consumer: AlarmConsumer) -> tuple[dict[str, int], dict[str, Any]]:
        """Sent against queued by distinct id; only those that nobody could hear are excused.

        Times are from the meter's datagram to the outage queue, while the uplink is not cut.
        """
        sent = {
            alarm_id(g["meter"], "last-gasp", [], g["at"]): g["sent"]
            for g in self._gasps
            if g["genuine"] and not any(k - GRACE_S < g["sent"] <= k + 3 for k in self._kills)
        }
        queued = {i for i, (a, _) in consumer.arrived.items() if a["code"] == "last-gasp"}
        waits = sorted(
            1000 * (consumer.arrived[i][1] - at)
            for i, at in sent.items()
            if i in consumer.arrived and not any(a <= at <= b for a, b in self._cuts)
        )
        figures: dict[str, Any] = {"p50": None, "p99": None}
        if waits:
            figures = {
                "p50": round(waits[len(waits) // 2], 1),
                "p99": round(waits[min(len(waits) - 1, int(len(waits) * 0.99))], 1),
            }
        return {
            "sent": len(sent),
            "queued": len(queued & sent.keys()),
            "lost": len(sent.keys() - queued),
        }, figures

    @staticmethod
    def _disagreements(
        document: dict[str, Any], accounts: dict[str, count.Account], code: int
    ) -> list[str]:
        """Why the counts do not agree; empty when they do."""
        out = [
            f"{document[name]} readings {name}"
            for name in ("lost", "doubled", "altered")
            if document[name]
        ]
        for kind, account in accounts.items():
            if account.captured != account.stored:
                out.append(f"{kind}: {account.captured} captured, {account.stored} stored")
            out += account.examples
            table = {k: v for k, v in document["table"][kind].items() if v}
            if table:
                out.append(f"{kind}: the table differs from the lake: {table}")
        if document["alarms"]["lost"]:
            out.append(f"{document['alarms']['lost']} last gasps lost")
        if not sum(document["captured"].values()):
            out.append("nothing was captured")
        if code != 0:
            out.append(f"the gateway ended with exit code {code} after SIGTERM")
        return out


def _reports(file: Path) -> list[dict[str, Any]]:
    reports: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return reports


def _free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def as_document(outcome: Outcome) -> dict[str, Any]:
    """What `--json` prints."""
    extra = {"disagreements": outcome.disagreements} if outcome.disagreements else {}
    return outcome.document | extra
