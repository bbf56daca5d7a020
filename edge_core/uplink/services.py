"""What IoT Core offers beside messages, for a gateway whose own connection it is (kinds aws and mqtt, no nucleus).

    renewal        of the certificate that `opendcu provision` obtained, from two thirds of its life on
    defender       Device Defender's custom metrics, every `[uplink] defender_every`
    configuration  by job, or by the named shadow `opendcu`, if `[uplink] configured_by` says so

All of it goes over the sender's connection, is tried again later when it fails, and is never a reason to end; none of
it is journalled. A document that cannot be used is refused with its reasons upward and changes nothing; one that can
is answered first and used then, so that a stop between the two repeats it, which does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Any

import msgspec

from edge_core import errors
from edge_core.config.remote import SCHEMA, kept, set_of
from edge_core.config.tables import ConfigErrors
from edge_core.uplink.provisioning import RENEWAL_TEMPLATE, answers_of, obtain
from edge_core.uplink.requests import ACCEPTED, REJECTED, Rejected, Requests

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from edge_core.clock import Clock
    from edge_core.config.schema import Config
    from edge_core.uplink.certificates import Certificates

log = logging.getLogger(__name__)

SHADOW = "opendcu"
LOOK_S = 600.0  # between looks at the certificate
RETRY_S = (60.0, 3_600.0)
ALARM_AT = 0.9  # of a certificate's life: renewal should long have worked
LEAST_REPORT_S = 300.0  # Device Defender takes no more
MOST_REASON = 1_024  # of a job's statusDetails
METRICS = ("journal_depth", "failed_associations", "unknown_senders")
PREFIX = "opendcu_"


class Services:
    """The services of one gateway.

    Args:
        publish: through the sender's connection; waits for the PUBACK.
        metrics: current figures: journal_depth a level, the others counted since the start.
        configure: checks a map for use and keeps it; raises ConfigErrors, and changes nothing then.
        changed: called after the answer is out: use what was kept.
        certificates: if the certificate is ours to renew.
        reconnect: ends the connection, for a new certificate to be shown.
        expiring: called with the seconds left when the certificate ends soon and renewal has not worked.
    """

    def __init__(
        self,
        config: Config,
        clock: Clock,
        *,
        publish: Callable[[str, bytes], Awaitable[None]],
        metrics: Callable[[], Mapping[str, int]],
        configure: Callable[[dict[str, Any]], None] | None = None,
        changed: Callable[[], None] = lambda: None,
        certificates: Certificates | None = None,
        reconnect: Callable[[], Awaitable[None]] | None = None,
        expiring: Callable[[float], None] = lambda _: None,
        rng: random.Random | None = None,
    ) -> None:
        self._config, self._clock = config, clock
        self._publish, self._metrics = publish, metrics
        self._configure, self._changed = configure, changed
        self.certificates, self._reconnect, self._expiring = certificates, reconnect, expiring
        self._rng = rng or random.Random()
        self._requests = Requests(publish)
        self._online = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._configuring = asyncio.Lock()
        self._reported = 0
        self._warned = ""
        thing = f"$aws/things/{config.gateway.id}"
        self._jobs, self._shadow = f"{thing}/jobs", f"{thing}/shadow/name/{SHADOW}"
        self._defender = f"{thing}/defender/metrics/json"
        self._by = config.uplink.configured_by if configure is not None else "off"
        self._every_s = float(config.uplink.defender_every)

    @property
    def topics(self) -> list[str]:
        """What to subscribe to; empty when nothing of this is in use."""
        out: list[str] = []
        if self.certificates is not None:
            out += answers_of(RENEWAL_TEMPLATE)
        if self._every_s:
            out += [self._defender + ACCEPTED, self._defender + REJECTED]
        if self._by == "job":
            out += [
                f"{self._jobs}/notify-next", f"{self._jobs}/$next/get/+", f"{self._jobs}/+/update/+",
            ]  # fmt: skip
        elif self._by == "shadow":
            out += [
                f"{self._shadow}/update/delta",
                f"{self._shadow}/get/+",
                f"{self._shadow}/update/+",
            ]
        return list(dict.fromkeys(out))

    def heard(self, topic: str, payload: bytes) -> None:
        """A message that is none of the gateway's own. On the loop."""
        if self._requests.feed(topic, payload):
            return
        if topic == self._defender + REJECTED:
            self._warn("device defender", payload[:200].decode(errors="replace"))
        elif topic == f"{self._jobs}/notify-next":
            self._task(self._take_job(payload))
        elif topic == f"{self._shadow}/update/delta":
            self._task(self._take_shadow())

    def connected(self, up: bool) -> None:
        """The sender's connection is there, or is gone. On the loop."""
        if not up:
            self._online.clear()
            return
        self._online.set()
        if self._by == "job":
            self._task(self._ask_for_job())
        elif self._by == "shadow":
            self._task(self._take_shadow())

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            if self.certificates is not None:
                group.create_task(self._keep_certificate(self.certificates), name="renewal")
            if self._every_s:
                group.create_task(self._report(), name="device defender")
            await asyncio.Event().wait()

    def _task(self, work: Any) -> None:
        async def guarded() -> None:
            try:
                await work
            except errors.OpenDCUError as error:
                self._warn("iot services", str(error))

        task = asyncio.create_task(guarded(), name="iot service")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _warn(self, what: str, why: str) -> None:
        if f"{what}{why}" != self._warned:  # the same trouble is told once
            log.warning("%s: %s", what, why)
            self._warned = f"{what}{why}"

    # --- the certificate

    async def renew(self) -> str:
        """Obtain another certificate now; its serial. It is shown at the next connection.

        Raises:
            UplinkError: why not.
        """
        if self.certificates is None:
            raise errors.UplinkError(
                "the certificate was put there by hand: renew it with `opendcu provision --renew` while the gateway"
                " does not run"
            )
        got = await obtain(
            self._requests, self.certificates, self._config.gateway.id, RENEWAL_TEMPLATE
        )
        log.info("certificate renewed: %s is shown at the next connection", got.certificate[:12])
        return got.certificate

    async def _keep_certificate(self, certificates: Certificates) -> None:
        wait, shown = RETRY_S[0], float("-inf")
        while True:
            await self._online.wait()
            pause = LOOK_S
            try:
                now = self._clock.now()
                certificates.give_up(now)
                if certificates.due(now):
                    await self.renew()
                    shown = float("-inf")
                if certificates.next is not None and self._clock.monotonic() - shown > RETRY_S[1]:
                    shown = (
                        self._clock.monotonic()
                    )  # connected with the old one all the same: once more, later
                    if self._reconnect is not None:
                        await self._reconnect()
                wait = RETRY_S[0]
            except errors.UplinkError as error:
                self._warn("certificate not renewed", str(error))
                pause, wait = wait, min(RETRY_S[1], wait * 2)
                self._look_at_end(certificates)
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.0))

    def _look_at_end(self, certificates: Certificates) -> None:
        life, now = certificates.life(), self._clock.now()
        if life is not None and now > life.begins + (life.ends - life.begins) * ALARM_AT:
            self._expiring(life.ends - now)

    # --- device defender

    async def _report(self) -> None:
        before = dict(self._metrics())
        while True:
            await asyncio.sleep(max(self._every_s, LEAST_REPORT_S) / self._clock.speed)
            await self._online.wait()
            now = dict(self._metrics())
            try:
                await self._publish(self._defender, self.report(before, now))
                before = now
            except errors.UplinkError as error:
                self._warn("device defender", str(error))

    def report(self, before: Mapping[str, int], now: Mapping[str, int]) -> bytes:
        """A report: the level of the journal, what was counted since the report before. Ids only rise."""
        self._reported = max(self._reported + 1, int(self._clock.now()))
        figures = {
            name: value if name == "journal_depth" else max(0, value - before.get(name, 0))
            for name, value in now.items()
        }
        return msgspec.json.encode(
            {
                "header": {"report_id": self._reported, "version": "1.0"},
                "custom_metrics": {f"{PREFIX}{k}": [{"number": v}] for k, v in figures.items()},
            }
        )

    # --- configuration

    async def _ask_for_job(self) -> None:
        answer = await self._requests.ask(f"{self._jobs}/$next/get", {})
        await self._run_job(answer.get("execution"))

    async def _take_job(self, payload: bytes) -> None:
        try:
            document = msgspec.json.decode(payload, type=dict[str, Any])
        except msgspec.DecodeError:
            return
        await self._run_job(document.get("execution"))

    async def _run_job(self, execution: Any) -> None:
        if not isinstance(execution, dict) or not execution.get("jobId"):
            return  # no job waits
        async with self._configuring:
            refused = self._apply(execution.get("jobDocument"))
            body = {
                "status": "REJECTED" if refused else "SUCCEEDED",
                "statusDetails": {"reason": refused[:MOST_REASON]} if refused else {},
            }
            job = str(execution["jobId"])
            try:
                await self._requests.ask(f"{self._jobs}/{job}/update", body)
            except Rejected as error:
                self._warn(f"job {job}", str(error))  # cancelled meanwhile: what is in use stays
            if not refused:
                self._changed()

    async def _take_shadow(self) -> None:
        async with self._configuring:
            try:
                shadow = await self._requests.ask(f"{self._shadow}/get", {})
            except Rejected as error:
                if error.code not in ("404", ""):
                    raise
                shadow = {}
            state = shadow.get("state") or {}
            desired, reported = state.get("desired"), state.get("reported") or {}
            in_use = kept(self._config)
            refused = ""
            if isinstance(desired, dict) and "set" in desired and desired["set"] != in_use:
                refused = self._apply(
                    {"schema": desired.get("schema", SCHEMA), "set": desired["set"]}
                )
            now = kept(self._config)
            told = {
                "set": {**dict.fromkeys(set(reported.get("set") or {}) - set(now)), **now},
                "refused": {"version": shadow.get("version"), "reason": refused[:MOST_REASON]}
                if refused
                else None,
            }
            if reported.get("set", {}) != now or (reported.get("refused") or {}) != (
                told["refused"] or {}
            ):
                await self._requests.ask(f"{self._shadow}/update", {"state": {"reported": told}})
            if now != in_use:
                self._changed()

    def _apply(self, document: object) -> str:
        """Check and keep a document; why not, or ""."""
        assert self._configure is not None
        try:
            self._configure(set_of(document))
        except ConfigErrors as refusal:
            log.warning("configuration from the cloud refused: %s", refusal)
            return str(refusal)
        except OSError as error:
            return f"cannot be kept: {error.strerror}"
        return ""
