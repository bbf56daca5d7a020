"""The long run behind docs/reference/durability.md: kills and power cuts by the thousand, each held against the rules.

    python -m tests.system.durability --kills 10000 --out benchmarks/results/durability-<date>.json

Shares of --kills: 30 % random moments, 20 % the same on a clock that retires generations at every turn, 25 % enumerated
statements and instructions of opening and committing, 5 % while the files are made, one for each statement of a migration,
20 % power cuts below SQLite (half of them on the fast clock). --senders adds rounds of five kills of a process that journals
and sends, against a real mosquitto and a cloud that loses, repeats, delays and rejects. A broken rule does not end the run:
its folder is kept, it is counted and printed, and the exit code is 1.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from tests.conftest import Mosquitto, program
from tests.integration.uplink.conftest import Cloud
from tests.integration.uplink.test_kills import kill_and_drain
from tests.system import journal_kills, power_cuts
from tests.system.journal_kills import Tally

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "data" / "journals" / "v001.db"
A_FOLDER = 240  # kills; what was acknowledged is held against the whole folder at each check
CUTS = 60


class Run:
    """Parts, their tallies, and what went wrong."""

    def __init__(self, base, seed):
        self.base, self.seed = base, seed
        self.parts, self.broken = {}, []
        self.server = journal_kills.Server()
        self.number = 0

    def part(self, name, campaign):
        """Run a campaign in a folder of its own; count it, or keep the folder of what broke."""
        self.number += 1
        folder = self.base / f"{self.number:04d}"
        folder.mkdir()
        tally = self.parts.setdefault(name, Tally())
        try:
            tally += campaign(folder, self.seed + 1000 * self.number)
        except Exception:
            self.broken.append({"part": name, "folder": str(folder), "why": traceback.format_exc()})
            print(self.broken[-1]["why"], file=sys.stderr, flush=True)
            self.server.process.kill()
            self.server = journal_kills.Server()
        else:
            shutil.rmtree(folder)
        print(f"{name}: {tally}", file=sys.stderr, flush=True)


def chunks(count, size):
    """`count` in parts of at most `size`."""
    while count > 0:
        yield min(count, size)
        count -= size


def kills(run, total):
    """The parts that kill."""
    k = journal_kills
    for n in chunks(total * 30 // 100, A_FOLDER):
        run.part("random moments", lambda f, s, n=n: k.random_kills(run.server, f, n, s))
    for n in chunks(total * 20 // 100, A_FOLDER):
        run.part(
            "random moments, retiring",
            lambda f, s, n=n: k.random_kills(run.server, f, n, s, k.fast()),
        )
    rng = random.Random(run.seed)
    for share, kind in ((5, "trace"), (6, "ops"), (7, "late-trace"), (7, "late-ops")):
        points = k.spread(kind, total * share // 100)
        rng.shuffle(points)  # so that each folder sees all of the reach
        for at in range(0, len(points), A_FOLDER):
            run.part(
                f"enumerated, {kind}",
                lambda f, s, p=points[at : at + A_FOLDER], kind=kind: k.enumerated_kills(
                    run.server, f, kind, p, s
                ),
            )
    for kind in ("trace", "ops"):
        for n in chunks(total * 25 // 1000, 100):
            points = [rng.randrange(1, 100 if kind == "trace" else 700) for _ in range(n)]
            run.part(
                f"files being made, {kind}",
                lambda f, s, p=points, kind=kind: k.kills_while_the_files_are_made(
                    run.server, f, kind, p, s
                ),
            )
    run.part("migration", lambda f, _: k.kills_while_migrating(run.server, f, range(1, 80), OLD))


def cuts(run, total, shim):
    """The parts that cut the power."""
    for turn, n in enumerate(chunks(total * 20 // 100, CUTS)):
        clock = "-" if turn % 2 else journal_kills.fast()
        run.part(
            "power cuts" + (", retiring" if turn % 2 == 0 else ""),
            lambda f, s, n=n, c=clock: power_cuts.power_cuts(shim, f, s, cuts=n, clock=c),
        )


def senders(run, rounds):
    """Rounds of kills of a process that journals and sends."""

    def one(folder, seed):
        mosquitto = Mosquitto(folder)
        cloud = Cloud(mosquitto.port)
        try:
            rows, alarms = kill_and_drain(folder, cloud, mosquitto, random.Random(seed))
            assert cloud.invalid == []
            assert cloud.conflicts == []
        finally:
            cloud.close()
            mosquitto.kill()
        return Tally(kills=6, checks=1, rows=rows, alarms=alarms)  # the broker is one of them

    for _ in range(rounds):
        run.part("sender and broker", one)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.system.durability")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--senders", type=int, default=0, metavar="ROUNDS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the journals are; a RAM disk is kind")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="durability-", dir=options.folder))
    began = time.time()  # noqa: TID251 a report says when
    run = Run(base, options.seed * 1_000_000)
    shim = power_cuts.build_shim(program("cc", "gcc libc6-dev"), base)
    kills(run, options.kills)
    cuts(run, options.kills, shim)
    senders(run, options.senders)
    run.server.close()
    total = Tally()
    for tally in run.parts.values():
        total += tally
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT
    )
    document = {
        "question": "durability",
        "command": " ".join(["python -m tests.system.durability", *sys.argv[1:]]),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "commit": commit.stdout.strip(),
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "seconds": round(time.time() - began),  # noqa: TID251
        "parts": {name: asdict(tally) for name, tally in run.parts.items()},
        "total": asdict(total),
        "broken_rules": run.broken,
    }
    text = json.dumps(document, indent=1) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)
    if not run.broken:
        shutil.rmtree(base)
    sys.exit(1 if run.broken else 0)


if __name__ == "__main__":
    main()
