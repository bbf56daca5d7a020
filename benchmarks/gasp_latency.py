"""How long from a last gasp's datagram to the broker, idle, with 30 days of backlog draining, and 5,000 within a second?

A datagram arrives at a UDP socket in a thread of its own (as the listener has it), becomes an alarm, goes through
`Journal.alarm`, the alarms lane and MQTT to a real mosquitto; a subscriber in a process of its own stamps the arrival
with the same monotonic clock. Parsing and deciphering the push belong to the listener's benchmark. The peer is the
shortest path there is: a bare paho client that publishes the same octets from the datagram's thread. "In two processes":
listener and journal stand in a process of their own, and the alarm comes to the uplink's by a datagram of ours.

usage: gasp_latency.py [--quick]
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from bytes_per_reading import FOUR, block
from common import save, table

from edge_core.clock import SystemClock
from edge_core.config.schema import Config, Gateway, Uplink
from edge_core.domain import make_alarm
from edge_core.gateway.wires import Wires
from edge_core.journal import Journal, Journals
from edge_core.journal.datadir import DataDirectory
from edge_core.uplink.clients import make_client
from edge_core.uplink.sender import Sender
from edge_core.uplink.topics import Topics

QUICK = "--quick" in sys.argv
GASPS = 60 if QUICK else 200
EVERY_S = 0.05  # 20 a second: no storm yet
STORM = 5_000
DAYS, METERS = (3, 100) if QUICK else (30, 500)

SUBSCRIBER = """
import json, sys, time
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
acks = sys.argv[2] == "ack"
def arrived(client, userdata, m):
    now = time.monotonic()
    d = json.loads(m.payload)
    if "alarms" in d:
        for a in d["alarms"]:
            print(a["at"], now, flush=False)
        sys.stdout.flush()
    if acks:
        client.publish("dcu/dcu-0001/down/acks", json.dumps({"schema": "opendcu.ack/1", "dcu": "dcu-0001",
            "epoch": d["epoch"], "acked": [[d["n"], d["n"]]], "rejected": [], "high": d["n"]}), qos=1)
c = paho.Client(CallbackAPIVersion.VERSION2)
c.on_message = arrived
c.on_subscribe = lambda *_: print("ready", flush=True)
c.on_connect = lambda *_: c.subscribe([("dcu/dcu-0001/alarms/#", 1), ("dcu/dcu-0001/reads/#", 1)])
c.connect("127.0.0.1", int(sys.argv[1]))
c.loop_forever()
"""


class Arrivals:
    """The subscriber's process and what it stamped: gasp number to monotonic second."""

    def __init__(self, port: int, *, ack: bool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUBSCRIBER, str(port), "ack" if ack else "-"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n"
        self.at: dict[int, list[float]] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            number, at = line.split()
            self.at.setdefault(int(number), []).append(float(at))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def listen(sock: socket.socket, hear: Any) -> None:
    """The listener's thread: a datagram is the number of a gasp."""
    while True:
        octets = sock.recv(64)
        if not octets:
            return
        hear(int(octets))


def alarm(number: int) -> Any:
    return make_alarm(
        f"GP{1_000_000 + number}", "last-gasp", at=number, heard=number, authenticated=True
    )


async def gasp(port: int, numbers: range, every_s: float) -> dict[int, float]:
    """Send datagrams; gasp number to the monotonic second before the send."""
    sent = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        begun = time.monotonic()
        for k, number in enumerate(numbers):
            wait = begun + k * every_s - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            sent[number] = time.monotonic()
            out.sendto(str(number).encode(), ("127.0.0.1", port))
    return sent


async def all_arrived(arrivals: Arrivals, sent: dict[int, float], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not sent.keys() <= arrivals.at.keys() and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def figures(arrivals: Arrivals, sent: dict[int, float]) -> dict[str, float]:
    took = sorted(arrivals.at[n][0] - at for n, at in sent.items() if n in arrivals.at)
    return {
        "sent": len(sent),
        "lost": len(sent) - len(took),
        "p50_ms": round(statistics.median(took) * 1e3, 2),
        "p99_ms": round(took[int(len(took) * 0.99)] * 1e3, 2),
        "max_ms": round(took[-1] * 1e3, 2),
        "all_within_s": round(
            max(arrivals.at[n][0] for n in sent if n in arrivals.at) - min(sent.values()), 2
        ),
    }


def udp(hear: Any) -> int:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("127.0.0.1", 0))
    threading.Thread(target=listen, args=(sock, hear), daemon=True).start()
    return int(sock.getsockname()[1])


def bare(broker: int) -> dict[str, float]:
    """The peer: datagram thread to paho, nothing in between."""
    arrivals = Arrivals(broker, ack=False)
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", broker)
    client.loop_start()
    body = '{"epoch":1,"n":1,"alarms":[{"at":%d,"fill":"' + "x" * 230 + '"}]}'
    port = udp(lambda n: client.publish("dcu/dcu-0001/alarms/outage", body % n, qos=1))

    async def go() -> dict[str, float]:
        sent = await gasp(port, range(GASPS), EVERY_S)
        await all_arrived(arrivals, sent)
        return figures(arrivals, sent)

    result = asyncio.run(go())
    client.disconnect()
    client.loop_stop()
    arrivals.close()
    return result


LISTENER = """
import sys, threading
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[3]]
sys.argv[1:], folder = [], sys.argv[1]
from gasp_latency import alarm, udp
from edge_core.clock import SystemClock
from edge_core.gateway.wires import Wires
from edge_core.gateway.wires import Wires
from edge_core.journal import Journal, Journals
from edge_core.journal.datadir import DataDirectory
from edge_core.journal.datadir import DataDirectory
directory = DataDirectory(folder)
journal = Journal.open(directory.journal("push"), clock=SystemClock())
nothing = lambda: None
wires = Wires(directory, "push", ["push"], journal, None, on_news=nothing, on_look=nothing)
print(udp(lambda n: journal.alarm(alarm(n))), flush=True)
threading.Event().wait()
"""


def listener_elsewhere(data: Path) -> subprocess.Popen[str]:
    """The process with the listener; its first line is its port."""
    here = Path(__file__).resolve().parent
    return subprocess.Popen(
        [sys.executable, "-c", LISTENER, str(data), str(here), str(here.parent)],
        stdout=subprocess.PIPE,
        text=True,
    )


async def across(broker: int, folder: Path) -> dict[str, dict[str, float]]:
    """The listener in another process than the uplink."""
    clock = SystemClock()
    directory = DataDirectory(folder / "split").prepare()
    config = Config(
        gateway=Gateway(id="dcu-0001", data_dir=str(directory.path)),
        uplink=Uplink(url=f"mqtt://127.0.0.1:{broker}"),
    )
    journals = Journals(Journal.open(directory.journal(), clock=clock), clock)
    client = make_client(config, Topics("dcu", "dcu-0001").subscription)
    sender = Sender(config, journals, client, clock)
    wires = Wires(directory, "", ["uplink"], journals.own, journals,
                  on_news=lambda: None, on_look=sender.look)  # fmt: skip
    wires.start(asyncio.get_running_loop())
    arrivals = Arrivals(broker, ack=True)
    child = listener_elsewhere(directory.path)
    assert child.stdout
    port = int(await asyncio.to_thread(child.stdout.readline))
    task = asyncio.create_task(sender.run())
    while sender.status().state != "connected":  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    out = {}
    sent = await gasp(port, range(3_000, 3_000 + GASPS), EVERY_S)
    await all_arrived(arrivals, sent)
    out["idle, in two processes"] = figures(arrivals, sent)
    sent = await gasp(port, range(200_000, 200_000 + STORM), 0.0002)
    await all_arrived(arrivals, sent)
    out["5,000 within a second, in two processes"] = figures(arrivals, sent)
    sender.stop()
    await task
    child.kill()
    child.wait()
    wires.close()
    journals.close()
    journals.own.close()
    arrivals.close()
    return out


async def ours(broker: int, folder: Path) -> dict[str, dict[str, float]]:
    clock = SystemClock()
    config = Config(
        gateway=Gateway(id="dcu-0001", data_dir=str(folder / "data")),
        uplink=Uplink(url=f"mqtt://127.0.0.1:{broker}"),
    )
    journal = Journal.open(folder / "data" / "journal.db", clock=clock)
    first = int(clock.now()) // 86_400 * 86_400 - DAYS * 86_400
    for day in range(DAYS):
        for meter in range(METERS):
            t0 = first + day * 86_400
            journal.append(block(meter, t0, 96, FOUR, t0 + 86_500))
        journal.flush().result(60)
    backlog = DAYS * METERS * 96 * 4
    print(f"{backlog:,} readings queued", file=sys.stderr)
    arrivals = Arrivals(broker, ack=True)
    client = make_client(config, Topics("dcu", "dcu-0001").subscription)
    began = time.monotonic()
    sender = Sender(config, journal, client, clock)
    port = udp(lambda n: journal.alarm(alarm(n)))
    task = asyncio.create_task(sender.run())
    while sender.counts.published == 0:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    ready = time.monotonic() - began
    out: dict[str, dict[str, float]] = {}
    sent = await gasp(port, range(1_000, 1_000 + GASPS), EVERY_S)
    await all_arrived(arrivals, sent)
    waiting = len(journal.segments(0, limit=10_000))
    out["with the backlog draining"] = figures(arrivals, sent) | {"segments_left": waiting}
    sent = await gasp(port, range(100_000, 100_000 + STORM), 0.0002)
    await all_arrived(arrivals, sent)
    doubled = sum(len(at) > 1 for at in arrivals.at.values())
    waiting = len(journal.segments(0, limit=10_000))
    out["5,000 within a second, backlog draining"] = figures(arrivals, sent) | {
        "doubled": doubled,
        "segments_left": waiting,
    }
    while journal.segments(0, limit=1):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    drained = time.monotonic() - began
    sent = await gasp(port, range(2_000, 2_000 + GASPS), EVERY_S)
    await all_arrived(arrivals, sent)
    out["idle"] = figures(arrivals, sent)
    out["drain"] = {
        "readings": backlog,
        "first_publish_s": round(ready, 3),
        "seconds": round(drained, 1),
        "readings_per_s": round(backlog / drained),
        "octets": sender.counts.octets,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }
    sender.stop()
    await task
    journal.close()
    arrivals.close()
    return out


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            broker = int(s.getsockname()[1])
        (folder / "m.conf").write_text(
            f"listener {broker} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 100000\n"
            "set_tcp_nodelay true\n"
        )
        path = os.environ["PATH"] + ":/usr/sbin"
        mosquitto = subprocess.Popen(
            ["mosquitto", "-c", str(folder / "m.conf")],
            env=os.environ | {"PATH": path},
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(0.5)
            results = {"peer: bare paho": bare(broker)} | asyncio.run(ours(broker, folder))
            results |= asyncio.run(across(broker, folder))
        finally:
            mosquitto.kill()
            mosquitto.wait()
    drain = results.pop("drain")
    keys = ["sent", "lost", "p50_ms", "p99_ms", "max_ms", "all_within_s"]
    print(
        table(
            [["datagram to subscriber", *keys]]
            + [[n, *(str(r[k]) for k in keys)] for n, r in results.items()]
        )
    )
    print(json.dumps(drain))
    print(save("gasp_latency", {"results": results, "drain": drain}, "paho-mqtt", "msgspec"))


if __name__ == "__main__":
    main()
