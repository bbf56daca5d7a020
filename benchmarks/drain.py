"""How fast does a backlog drain, beside how fast it filled, and does the link's quota hold?

Load profiles of a fleet (15 minutes, 4 registers, hourly reads) fill a journal for some days while nobody sends. Then the
sender connects to a real mosquitto with a cloud in a process of its own that decodes, acks what it has, and counts. The fill
rate is that of the fleet in real time. IoT Core's quotas (100 publishes/s and 512 KiB/s a connection) are enforced by the
sender itself; the busiest second of what arrived is shown beside them.

usage: drain.py [--quick]
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

from bytes_per_reading import FOUR, T0, block
from common import save, table

from edge_core.clock import SystemClock
from edge_core.config.schema import Config, Gateway, Uplink
from edge_core.journal import Journal
from edge_core.uplink.clients import make_client
from edge_core.uplink.sender import Sender
from edge_core.uplink.topics import Topics
from tests.conftest import Mosquitto

DCU = "dcu-0001"
CLOUD = """
import base64, collections, gzip, json, sys, time
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
base = f"dcu/{sys.argv[2]}/"
seconds = collections.Counter(); octets = collections.Counter()
def arrived(client, userdata, m):
    topic = m.topic.removeprefix(base)
    if topic.startswith("down/"):
        return
    now = time.monotonic()
    seconds[int(now)] += 1; octets[int(now)] += len(m.payload)
    d = json.loads(m.payload)
    if "reads" not in topic:
        return
    if "data" in d:
        d |= json.loads(gzip.decompress(base64.b64decode(d["data"])))
    n = sum(b["rows"] * len(b["values"]) for b in d["blocks"])
    ack = {"schema": "opendcu.ack/1", "dcu": d["dcu"], "epoch": d["epoch"], "acked": [[d["n"], d["n"]]], "rejected": [], "high": d["n"]}
    client.publish(base + "down/acks", json.dumps(ack), qos=1)
    print(json.dumps({"readings": n, "octets": len(m.payload), "most_publishes": max(seconds.values()), "most_octets": max(octets.values())}), flush=True)
c = paho.Client(CallbackAPIVersion.VERSION2, client_id="cloud")
c.on_connect = lambda client, *_: client.subscribe(base + "#", qos=1)
c.on_subscribe = lambda *_: print("ready", flush=True)
c.on_message = arrived
c.connect("127.0.0.1", int(sys.argv[1]))
c.loop_forever()
"""


def fill(journal: Journal, meters: int, days: int, every_h: int) -> int:
    """Hourly reads (or every so many hours) of all meters; readings."""
    readings = 0
    for hour in range(0, 24 * days, every_h):
        at = T0 + 3_600 * (hour + every_h)
        for meter in range(meters):
            one = block(meter, T0 + 3_600 * hour, 4 * every_h, FOUR, at + meter * 60 // meters)
            journal.append(one)
            readings += one.readings
        journal.flush().result(60)
    return readings


async def drain(folder: Path, meters: int, days: int) -> dict[str, float]:
    clock = SystemClock()
    journal = Journal.open(folder / "data" / "journal.db", clock=clock)
    readings = await asyncio.to_thread(fill, journal, meters, days, 1)
    broker = Mosquitto(folder)
    cloud = subprocess.Popen(  # noqa: ASYNC220 before anything is measured
        [sys.executable, "-c", CLOUD, str(broker.port), DCU], stdout=subprocess.PIPE, text=True
    )
    assert cloud.stdout
    assert cloud.stdout.readline() == "ready\n"
    config = Config(
        gateway=Gateway(id=DCU, data_dir=str(folder / "data"), timezone="Asia/Kolkata"),
        uplink=Uplink(url=broker.url),
    )
    client = make_client(config, Topics("dcu", DCU).subscription)
    sender = Sender(config, journal, client, clock, linger_s=0.0)
    began, cpu = time.perf_counter(), time.process_time()
    task = asyncio.create_task(sender.run())
    arrived, octets, last = 0, 0, {}
    while arrived < readings:
        last = json.loads(await asyncio.to_thread(cloud.stdout.readline))
        arrived += last["readings"]
        octets += last["octets"]
    took, used = time.perf_counter() - began, time.process_time() - cpu
    sender.stop()
    await task
    cloud.kill()
    cloud.communicate()
    broker.kill()
    journal.close()
    fill_rate = readings / (days * 86_400)
    return {
        "readings": readings,
        "drained in s": round(took, 2),
        "readings/s": round(readings / took),
        "filled at readings/s": round(fill_rate, 2),
        "times the fill rate": round(readings / took / fill_rate),
        "octets/reading": round(octets / readings, 3),
        "busiest second, publishes": last["most_publishes"],
        "busiest second, KiB": round(last["most_octets"] / 1024, 1),
        "CPU us/reading": round(used / readings * 1e6, 2),
    }


def main() -> None:
    quick = "--quick" in sys.argv
    cases = {"500 meters, 2 days": (500, 2)}
    if not quick:
        cases |= {"100 meters, 10 days": (100, 10)}
    results = {}
    for name, (meters, days) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = asyncio.run(drain(Path(folder), meters, days))
    heads = list(next(iter(results.values())))
    print(table([["", *results], *([h, *(f"{r[h]:,}" for r in results.values())] for h in heads)]))
    if not quick:
        print(save("drain", {"results": results}, "paho-mqtt", "msgspec", "numpy"))


if __name__ == "__main__":
    main()
