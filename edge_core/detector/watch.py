"""Episodes: what fires on many days is one finding, told when it begins, weekly while it lasts, and when it ends.

The id of a finding is SHA-256 over meter, kind, first day (UTC s of its begin) and model version; a later revision of
the same id supersedes (DESIGN section 6). Everything here is kept in detector.db; a finding is written there only after
the journal has it, so a kill tells it again under the same id and revision, never loses it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_core.detector.days import Calendar
    from edge_core.detector.history import Store

QUIET_DAYS = 7
"""So many days without firing end an episode: whoever drives there in that week sees one case."""
TOLD_AGAIN_DAYS = 7


def finding_id(meter: str, kind: str, begin: int, version: str) -> str:
    """The id that every revision of one finding shares."""
    return hashlib.sha256(f"{meter}|{kind}|{begin}|{version}".encode()).hexdigest()


class Watch:
    """Open episodes of all meters."""

    def __init__(self, store: Store, calendar: Calendar) -> None:
        self._store, self._calendar = store, calendar
        self._open: dict[tuple[int, str], dict[str, Any]] = {
            (row["meter"], row["kind"]): row for row in store.findings(only_open=True)
        }
        self._rows: list[dict[str, Any]] = []
        self._messages: list[dict[str, Any]] = []
        self._telling = False

    def fire(
        self,
        number: int,
        kind: str,
        day: int,
        *,
        version: str,
        score: int = 1000,
        threshold: int = 1000,
        explain: dict[str, Any],
        since: int | None = None,
    ) -> None:
        """Something fires on a day; score and threshold in thousandths.

        Args:
            since: day on which it seems to have begun, for a new episode.
        """
        row = self._open.get((number, kind))
        if row is not None and day < row["first"]:
            return
        if row is not None and day <= row["last"] + QUIET_DAYS:
            if day <= row["last"]:
                return
            row["last"] = day
            if day - row["body"].get("told", row["first"]) >= TOLD_AGAIN_DAYS:
                self._tell(row, day, explain, score)
            else:
                self._rows.append(row)
            return
        if row is not None:
            self._end(row)
        first = day if since is None else since
        if row is not None:  # two episodes do not overlap
            first = max(first, row["last"] + 1)
        name = self._store.names[number]
        begin = self._calendar.begin(first)
        row = {
            "id": finding_id(name, kind, begin, version),
            "meter": number,
            "kind": kind,
            "first": first,
            "last": day,
            "rev": -1,
            "state": "open",
            "body": {"meter": name, "model": version, "threshold": threshold},
        }
        self._open[number, kind] = row
        self._tell(row, day, explain, score)

    def quiet(self, day: int) -> None:
        """All meters were looked at up to a day: episodes that ended are told."""
        for row in [r for r in self._open.values() if r["last"] < day - QUIET_DAYS]:
            self._end(row)

    def is_open(self, number: int, kind: str) -> bool:
        """Is an episode of this kind going on?"""
        return (number, kind) in self._open

    def goes_on(self, number: int, kind: str, day: int) -> bool:
        """Is an episode going on that has not been quiet for too long on a day?"""
        row = self._open.get((number, kind))
        return row is not None and day <= row["last"] + QUIET_DAYS

    def take_messages(self) -> list[dict[str, Any]]:
        """What the journal has to be told now; `told` when it has all of it."""
        messages, self._messages = self._messages, []
        self._telling = self._telling or bool(messages)
        return messages

    def told(self) -> None:
        """The journal has what was taken."""
        self._telling = False

    def save(self) -> None:
        """Write what changed, within the store's transaction; nothing as long as the journal lacks messages."""
        if self._telling or self._messages:
            return
        for row in self._rows:
            self._store.put_finding(
                (
                    row["id"],
                    row["meter"],
                    row["kind"],
                    row["first"],
                    row["last"],
                    row["rev"],
                    row["state"],
                    row["body"],
                )
            )
        self._rows.clear()

    def _end(self, row: dict[str, Any]) -> None:
        row["state"] = "closed"
        del self._open[row["meter"], row["kind"]]
        if row["last"] > row["body"].get("told", row["last"]):
            self._tell(
                row, row["last"], row["body"]["explain"] | {"ended": True}, row["body"]["score"]
            )
        else:
            self._rows.append(row)  # fmt: skip

    def _tell(self, row: dict[str, Any], day: int, explain: dict[str, Any], score: int) -> None:
        row["rev"] += 1
        body = row["body"]
        body["explain"], body["score"], body["told"] = explain, score, day
        self._rows.append(row)
        self._messages.append(
            {
                "id": row["id"],
                "rev": row["rev"],
                "meter": body["meter"],
                "kind": row["kind"],
                "from": self._calendar.begin(row["first"]),
                "to": self._calendar.begin(day + 1),
                "score": score,
                "threshold": body["threshold"],
                "model": body["model"],
                "explain": explain,
            }
        )
