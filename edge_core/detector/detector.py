"""The role `detector`: follows the journals, closes civil days, has them scored, writes findings back.

Everything that touches detector.db runs in one thread of its own; the event loop only waits. Per round: read the
segments above the cursor (released ones too), tell evidence of rows that lasted long enough at once, close the days
that are complete, save everything with the cursor, let a child score what was closed, journal the findings, and only
then write down that they were told.

A kill at any point loses nothing: the journal is read again from the saved cursor, days that were closed and not scored
are marked, and findings keep their id. A damaged detector.db is set aside and learned again from what the journal keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from edge_core.detector import evidence as rows_evidence
from edge_core.detector import rules
from edge_core.detector.collect import Collector, oldest_day
from edge_core.detector.days import Calendar, name_of
from edge_core.detector.history import Store
from edge_core.detector.model import BUILTIN, ModelRefused, load, trusted_keys
from edge_core.detector.replay import CONSUMPTION
from edge_core.detector.scorer import ChildFailed, in_child
from edge_core.detector.topology import measured
from edge_core.detector.watch import Watch
from edge_core.errors import JournalError
from edge_core.health import metrics
from edge_core.journal.datadir import DataDirectory
from edge_core.schedule.calendar import Daily, Every, parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.journal import Journal, Journals

log = logging.getLogger(__name__)

GRACE_S = 2 * 3600
SAVE_EVERY_S = 6 * 3600
LOOK_EVERY_S = 600
"""Civil seconds between two rounds at least; the desk's fast clock shortens them."""
SHORTEST_ROUND_S, LONGEST_ROUND_S = 1.0, 60.0
MAX_FINDINGS = 50
MAX_SCORED_DAYS = 14
"""A round: what was read back at the first start is scored bit by bit, oldest first."""

FINDINGS = metrics.counter(
    "opendcu_detector_findings_total", "Findings told, by kind; revisions count.", ("kind",)
)
DAYS = metrics.counter("opendcu_detector_meter_days_total", "Days of meters that the model scored.")
SCORES = metrics.gauge(
    "opendcu_detector_score_ratio",
    "Quantiles of the last day's scores: they drift when the model no longer fits.",
    ("quantile",),
)
CHILD = metrics.gauge(
    "opendcu_detector_child_memory_bytes", "Proportional set size of the last scoring child."
)


class Detector:
    """Looks for anomalies while it runs.

    Args:
        config: checked configuration; `[detector]`, `[gateway]` and `[schedule]` are read.
        journal: the journals of all processes; findings go into our own.
        clock: civil days close by it.
    """

    def __init__(self, config: Config, journal: Journal | Journals, clock: Clock) -> None:
        self._config, self._journal, self._clock = config, journal, clock
        self._calendar = Calendar(ZoneInfo(config.gateway.timezone))
        self._directory = DataDirectory(config.gateway.data_dir)
        self._grace_s = grace_s(config.schedule.interval_reads)
        self._stop = threading.Event()
        self._speed = max(1.0, clock.speed)
        self._complaints: dict[str, str] = {}

    async def run(self) -> None:
        """Follow the journal until cancelled."""
        loop = asyncio.get_running_loop()
        committed = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(committed.set)

        self._journal.on_commit(wake)
        with ThreadPoolExecutor(1, "detector") as thread:

            async def there(work: Callable[..., Any], *args: Any) -> Any:
                return await loop.run_in_executor(thread, work, *args)

            try:
                await there(self._open)
                while True:
                    while await self._round(there):
                        pass
                    wait_s = LOOK_EVERY_S / self._speed
                    await asyncio.sleep(min(LONGEST_ROUND_S, max(SHORTEST_ROUND_S, wait_s)))
                    committed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LONGEST_ROUND_S):
                            await committed.wait()
            finally:
                self._stop.set()
                thread.submit(self._close)

    async def _round(self, there: Callable[..., Any]) -> bool:
        """Read, close, score, tell; True when there is more to score. A full disk or a damaged journal is not our end."""
        try:
            await there(self._take)
            await self._tell(there)
            days = await there(self._due)
            scored = bool(days) and await self._score(there, days)
            await self._tell(there)
            return scored and len(days) == MAX_SCORED_DAYS
        except (JournalError, sqlite3.Error) as error:
            log.warning("detector: this round failed: %s", error)
            await there(self._undo)
            return False

    # ---- in the thread

    def _open(self) -> None:
        path = self._directory.detector
        try:
            self._store = Store(path)
            self._store.quick_check()
        except sqlite3.DatabaseError as error:
            aside = self._directory.set_aside(path, at=self._clock.now())
            log.warning("detector: %s is damaged (%s) and set aside as %s", path, error, aside)
            self._store = Store(path)
        self._load()

    def _load(self) -> None:
        """The state as the file has it."""
        self._collector = Collector(self._store, self._calendar)
        self._watch = Watch(self._store, self._calendar)
        self._read_to: dict[str, list[int]] = json.loads(self._store.meta("cursors", "{}"))
        if not self._read_to and self._store.meta("epoch") is not None:  # of a release before
            epoch, cursor = self._store.meta("epoch"), self._store.meta("cursor", 0)
            self._read_to["journal.db"] = [int(epoch), int(cursor)]
        self._cursors: dict[int, int] = {}
        self._pending: dict[int, set[int]] = {
            int(day): set(parts)
            for day, parts in json.loads(self._store.meta("pending", "{}")).items()
        }
        self._saved_at = self._clock.now()
        self._find_files()

    def _find_files(self) -> None:
        """Begin to follow files that are new, where they were left; one of another epoch from its beginning."""
        heads, epochs = self._journal.heads(), self._journal.epochs()
        for base, name in self._journal.names().items():
            if base in self._cursors or base not in heads:
                continue
            epoch, cursor = self._read_to.get(name, (epochs[base], 0))
            if epoch != epochs[base] or cursor > heads[base] - base:
                self._collector.start_over()
                cursor = 0
            self._cursors[base] = base + cursor
            self._journal.hold("detector", self._cursors[base])

    def _undo(self) -> None:
        """Back to what is saved."""
        self._store.rollback()
        self._load()

    def _close(self) -> None:
        try:
            self._save()
        except (sqlite3.Error, JournalError) as error:
            log.warning("detector: not saved, it will be read again: %s", error)
        self._store.close()

    def _take(self) -> None:
        """Everything that the journals have above the cursors."""
        oldest = oldest_day(self._calendar.day_of(self._clock.now()))
        self._find_files()
        for base in list(self._cursors):
            while not self._stop.is_set():
                page = self._journal.segments(self._cursors[base], limit=100, everything=True)
                if not page:
                    break
                for segment in page:
                    if self._stop.is_set():
                        return
                    if segment.kind == "interval":
                        self._segment(segment.id, oldest)
                    self._cursors[base] = segment.id
                self._shrink()
        self._fast()

    def _segment(self, number: int, oldest: int) -> None:
        try:
            blocks = self._journal.blocks(number)
        except JournalError as error:
            log.warning("detector: segment %d is left out: %s", number, error)
            return
        for block in blocks:
            try:
                self._collector.take(block, oldest=oldest)
            except (ValueError, OverflowError) as error:
                log.warning("detector: a block of meter %s is left out: %s", block.meter, error)

    def _fast(self) -> None:
        """Evidence that lasted long enough today is told now."""
        for day, number in sorted(self._collector.fresh):
            for kind, (seconds, first, last, extreme) in self._collector.evidence(
                day, number
            ).items():
                if seconds >= rows_evidence.LASTING_S[kind]:
                    self._watch.fire(
                        number,
                        kind,
                        day,
                        version=rules.VERSION,
                        score=1000,
                        explain={
                            "expected": rows_evidence.EXPECTED[kind],
                            "seen": round(extreme, 2),
                            "seconds": round(seconds),
                            "since": int(first),
                            "until": int(last),
                        },
                    )
        self._collector.fresh.clear()

    def _shrink(self) -> None:
        """Close what is beyond the bound of open days."""
        self._close_days(list(self._collector.closing(0)))

    def _due(self) -> list[list[Any]]:
        """Close complete days, save, and say what is to be scored: [day, [part, ...]], oldest first."""
        now = self._clock.now()
        if not self._clock.synchronised():
            return []
        today = self._calendar.day_of(now - self._grace_s)
        closing = list(self._collector.closing(today))
        if closing:
            self._close_days(closing)
        if closing or now - self._saved_at >= SAVE_EVERY_S:
            self._save()
        days = [day for day in sorted(self._pending) if day < today][:MAX_SCORED_DAYS]
        return [[day, sorted(self._pending[day])] for day in days]

    def _close_days(self, days: list[tuple[int, int]]) -> None:
        if not days:
            return
        self._store.begin()
        try:
            for day, part in days:
                self._collector.close(day, part)
                self._pending.setdefault(day, set()).add(part)
            self._write()
            self._store.commit()
        except BaseException:
            self._store.rollback()
            raise
        for day, part in days:
            self._collector.closed(day, part)
        self._written()

    def _save(self) -> None:
        self._store.begin()
        try:
            self._write()
            self._store.forget_before(oldest_day(self._calendar.day_of(self._clock.now())))
            self._store.commit()
        except BaseException:
            self._store.rollback()
            raise
        self._written()

    def _write(self) -> None:
        self._collector.save()
        self._watch.save()
        names, epochs = self._journal.names(), self._journal.epochs()
        for base, cursor in self._cursors.items():
            if base in names and base in epochs:
                self._read_to[names[base]] = [epochs[base], cursor - base]
        self._store.set_meta("cursors", json.dumps(self._read_to))
        epoch, cursor = self._read_to.get("journal.db", (self._journal.epoch, 0))
        self._store.set_meta("cursor", cursor)  # for the release before
        self._store.set_meta("epoch", epoch)
        pending = {str(day): sorted(parts) for day, parts in self._pending.items()}
        self._store.set_meta("pending", json.dumps(pending))

    def _written(self) -> None:
        self._collector.saved()
        self._saved_at = self._clock.now()
        for cursor in self._cursors.values():
            self._journal.hold("detector", cursor)

    # ---- scoring and telling

    async def _score(self, there: Callable[..., Any], days: list[list[Any]]) -> bool:
        """Have days judged and their findings told; False when the child failed: they are tried again."""
        request = {
            "file": str(self._directory.detector),
            "days": days,
            **await there(self._topology),
            "model": await there(self._model, self._config.detector.model, False),
            "shadow": await there(self._model, self._config.detector.shadow, True),
        }
        try:
            answer = await in_child(request)
        except (ChildFailed, OSError) as error:
            self._told_once(
                "child", f"detector: the scoring child failed, its days are tried again: {error}"
            )
            return False
        for path, why in answer["errors"].items():
            self._told_once(path, f"detector: only rules, no model: {why}")
        CHILD.set(answer["memory_mb"] * 1e6)
        for quantile, value in answer["quantiles"].items():
            SCORES.set(value / 1000, quantile)
        await there(self._judged, days, answer)
        await self._tell(there)
        await there(self._scored, days, answer)
        return True

    def _topology(self) -> dict[str, Any]:
        """Transformers and the meters below each, as the numbers of those that have history."""
        numbers, meters = self._store.meters, self._config.meters
        known: list[list[Any]] = []
        multipliers: dict[str, int] = {}
        for name, below in sorted(measured(meters).items()):
            under = [meter for meter in below if meter in numbers]
            if name not in numbers or len(under) < len(
                below
            ):  # a balance that lacks a meter is none
                silent = [meter for meter in (name, *below) if meter not in numbers]
                self._told_once(
                    f"transformer {name}",
                    f"detector: transformer {name} is not balanced: nothing was ever read of {', '.join(silent[:5])}",
                )
                continue
            known.append([numbers[name], [numbers[meter] for meter in under]])
            for meter in (name, *under):
                if meters[meter].multiplier != 1:
                    multipliers[str(numbers[meter])] = meters[meter].multiplier
        return {"transformers": known, "multipliers": multipliers}

    def _model(self, name: str, shadow: bool) -> dict[str, Any]:
        """A model directory for the child, its signature verified; empty when there is none that may be used.

        Looked at before every scoring: another model is in use from the next day on, without a restart.
        """
        if not name:
            return {}
        directory = BUILTIN if name == "builtin" else Path(name)
        try:
            card, _ = load(directory, trusted_keys(self._config.commands.signers))
        except ModelRefused as error:
            self._told_once(name, f"detector: only rules, no model: {error}")
            return {}
        importance = card.data.get("importance", {})
        return {
            "onnx": str(directory / "model.onnx"),
            "sha256": card.onnx_sha256,
            "version": card.version,
            "threshold": card.threshold(self._config.detector.false_alarms),
            "scales": card.scales,
            "typical": {k: v for k, v in card.typical.items() if k in importance},
            "weights": importance,
            "shadow": shadow,
        }

    def _told_once(self, about: str, text: str) -> None:
        """One clear line, not one a day."""
        if self._complaints.get(about) != text:
            self._complaints[about] = text
            log.warning(text)

    def _judged(self, days: list[list[Any]], answer: dict[str, Any]) -> None:
        for day, number, kind, body in sorted(answer["fired"], key=lambda f: (f[0], f[1], f[2])):
            if kind == CONSUMPTION:
                self._consumption(day, number, body)
                continue
            self._watch.fire(
                number,
                kind,
                day,
                version=answer["rules"],
                explain={
                    "why": rules.EXPLANATIONS[kind],
                    "since": name_of(day - rules.BEGAN_DAYS.get(kind, 0)),
                    **body,
                },
                since=day - rules.BEGAN_DAYS.get(kind, 0),
            )
        self._watch.quiet(days[-1][0])

    def _consumption(self, day: int, number: int, body: dict[str, Any]) -> None:
        """What the model finds; a shadow's findings have a kind of their own, so that nobody is sent out for them."""
        kind = f"{CONSUMPTION}-shadow" if body["shadow"] else CONSUMPTION
        if body["lingers"] and not self._watch.goes_on(number, kind, day):
            return
        since = day - body["days"] + 1
        explain = {
            "why": "the pattern of consumption changed as it does with theft or a faulty meter",
            "since": name_of(since),
            "seen_wh": body["seen_wh"],
            "expected_wh": body["expected_wh"],
            "features": body["features"],
        }
        self._watch.fire(
            number,
            kind,
            day,
            version=body["model"],
            score=body["score"],
            threshold=body["threshold"],
            explain=explain | ({"mode": "shadow"} if body["shadow"] else {}),
            since=since,
        )

    def _scored(self, days: list[list[Any]], answer: dict[str, Any]) -> None:
        for day, parts in days:
            left = self._pending.get(day, set()) - set(parts)
            if left:
                self._pending[day] = left
            else:
                self._pending.pop(day, None)
        DAYS.inc(by=answer["scored"])
        self._store.begin()
        try:
            for day, part, scores in answer["scores"]:
                self._store.put_scores(day, part, scores)
            for day, part, model, logits in answer["logits"]:
                self._store.put_logits(day, part, model, logits)
            self._store.commit()
        except BaseException:
            self._store.rollback()
            raise
        self._save()

    async def _tell(self, there: Callable[..., Any]) -> None:
        """Journal the findings; when they are durable, write them down as told."""
        messages = self._watch.take_messages()
        if not messages:
            return
        for first in range(0, len(messages), MAX_FINDINGS):
            some = messages[first : first + MAX_FINDINGS]
            await asyncio.wrap_future(self._journal.note("anomalies", "", {"findings": some}))
            for message in some:
                FINDINGS.inc(message["kind"])
                log.info(
                    "finding: meter %s: %s", message["meter"], message["kind"],
                    extra={"meter": message["meter"], "kind": message["kind"], "finding": message["id"]},
                )  # fmt: skip
        await there(self._save_findings)

    def _save_findings(self) -> None:
        self._watch.told()
        self._store.begin()
        try:
            self._watch.save()
            self._store.commit()
        except BaseException:
            self._store.rollback()
            raise


def grace_s(interval_reads: str) -> float:
    """How long after midnight a day is closed: until the reads of its last rows are in."""
    rule = parse_rule(interval_reads)
    if isinstance(rule, Every):
        return max(GRACE_S, 1.5 * rule.period_s)
    if isinstance(rule, Daily):
        return rule.minute * 60 + GRACE_S
    return GRACE_S
