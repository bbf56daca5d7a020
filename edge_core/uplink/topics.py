"""Topics (DESIGN section 5): the kind of data stands in the topic, so that no rule has to open the body.

Hard limits of IoT Core, which emulators and brokers do not enforce: 7 slashes and 256 octets, both without the
`$aws/rules/<rule>/` of Basic Ingest, and 128 KiB of payload.
"""

from __future__ import annotations

from edge_core.uplink.payloads.alarms import CLASSES
from edge_core.uplink.payloads.reads import KINDS

MAX_SLASHES = 7
MAX_TOPIC_BYTES = 256
MAX_PAYLOAD_BYTES = 128 << 10
BASIC_INGEST = "$aws/rules/opendcu_reads/"

_PLAIN = ("events", "anomalies", "health", "completeness")


class Topics:
    """The topics of one gateway.

    Args:
        prefix: first level.
        dcu: gateway id.
        basic_ingest: reads go to the rule directly; nobody can subscribe to them, alarms never do.

    Raises:
        ValueError: prefix and id leave no room below the limits.
    """

    def __init__(self, prefix: str, dcu: str, *, basic_ingest: bool = False) -> None:
        self.base = f"{prefix}/{dcu}"
        self.subscription = f"{self.base}/down/#"
        self.acks = f"{self.base}/down/acks"
        self.commands = f"{self.base}/down/commands/"
        self._reads = BASIC_INGEST if basic_ingest else ""
        check(f"{self.base}/replies/{'x' * 64}")

    def reads(self, kind: str) -> str:
        """Topic of blocks; `kind` is one of the four kinds of reads."""
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is no kind of reads")
        return f"{self._reads}{self.base}/reads/{kind}"

    def alarms(self, class_: str) -> str:
        """Topic of alarms of one class."""
        if class_ not in CLASSES:
            raise ValueError(f"{class_!r} is no class of alarms")
        return f"{self.base}/alarms/{class_}"

    def plain(self, kind: str) -> str:
        """Topic of events, anomalies, health or completeness."""
        if kind not in _PLAIN:
            raise ValueError(f"{kind!r} has no topic")
        return f"{self.base}/{kind}"

    def reply(self, command: str) -> str:
        """Topic of the answer to a command."""
        if not command or set(command) & set("/+#\0"):
            raise ValueError(f"{command!r} is no command id")
        return check(f"{self.base}/replies/{command}")


def check(topic: str) -> str:
    """The topic itself.

    Raises:
        ValueError: more slashes or octets than IoT Core takes.
    """
    counted = topic.removeprefix(BASIC_INGEST)
    if counted.count("/") > MAX_SLASHES:
        raise ValueError(f"topic {topic}: more than {MAX_SLASHES} slashes")
    if len(counted.encode()) > MAX_TOPIC_BYTES:
        raise ValueError(f"topic {topic}: more than {MAX_TOPIC_BYTES} octets")
    return topic
