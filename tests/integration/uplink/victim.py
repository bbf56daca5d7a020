"""A gateway's journal and uplink as a process to be killed: `victim.py FOLDER URL RUN [drain]`.

Prints `B <meter> <t0>` when a block is durable and `A <meter> <at>` when an alarm is, and `drained` when nothing waits.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from edge_core.domain import make_alarm
from tests.integration.uplink.conftest import T0, Uplinked, block


async def main(folder: Path, url: str, run: int, drain: bool) -> None:
    box = Uplinked(folder, url, max_message_bytes=4_800).start()
    k = 0
    while not drain:
        k += 1
        meter, t0 = 1_000 * run + k % 50, T0 + 3_600 * (k // 50)
        future = box.journal.append(block(meter, t0), durable="soon")
        future.add_done_callback(lambda f, m=meter, t=t0: f.result() and say(f"B {m} {t}"))
        if k % 10 == 0:
            alarm = make_alarm(
                f"GP{meter}", "last-gasp", at=T0 + k, heard=T0 + k, authenticated=True
            )
            told = box.journal.alarm(alarm)
            told.add_done_callback(lambda f, a=alarm: f.result() and say(f"A {a.meter} {a.at}"))
        await asyncio.sleep(0.002)
    while not box.drained:
        await asyncio.sleep(0.05)
    say("drained")
    await box.stop()


def say(line: str) -> None:
    # One write: two threads tell, and a kill between text and newline must not join two lines.
    os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:] == ["drain"]))
