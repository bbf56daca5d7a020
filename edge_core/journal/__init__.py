"""The durable middle: what was acquired and is not yet stored in the cloud, and what is known of every gap."""

from edge_core.journal.counters import CounterStore
from edge_core.journal.journal import Journal
from edge_core.journal.journals import Journals
from edge_core.journal.records import (
    Appended,
    Aside,
    Durable,
    Hole,
    JournalStatus,
    Lane,
    LedgerEntry,
    Note,
    Run,
    Segment,
    Verification,
)

__all__ = [
    "Appended",
    "Aside",
    "CounterStore",
    "Durable",
    "Hole",
    "Journal",
    "JournalStatus",
    "Journals",
    "Lane",
    "LedgerEntry",
    "Note",
    "Run",
    "Segment",
    "Verification",
]
