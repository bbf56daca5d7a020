"""Fuzz the decoders of `decoders` guided by coverage: python -m tests.fuzz.atheris_dlms NAME|all|list [libFuzzer options].

    python -m tests.fuzz.atheris_dlms all -max_total_time=600
    python -m tests.fuzz.atheris_dlms axdr -runs=100000

Needs atheris (Linux x86_64; dependency group dev). Begins with the captured frames. Each input has INPUT_OCTETS at most,
and must be decoded or refused with ProtocolError within INPUT_S and MEMORY_MB, which libFuzzer watches; anything else
ends the run with the input in ./crash-*, and exit code 77. The last line says how many inputs were run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

INPUT_OCTETS = 4096
INPUT_S = 10
MEMORY_MB = 1024


def main(arguments: list[str]) -> None:
    """Run until libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["edge_core.protocols", "edge_core.acquisition"]):
        from edge_core.errors import ProtocolError
        from tests.fuzz.decoders import DECODERS, SEEDS

    name, *options = arguments or ["list"]
    if name not in (*DECODERS, "all"):
        sys.stdout.write("\n".join(DECODERS) + "\n")
        raise SystemExit(0 if name == "list" else 2)
    chosen = list(DECODERS.values()) if name == "all" else [DECODERS[name]]

    def one(octets: bytes) -> None:
        which, body = (octets[0], octets[1:]) if len(chosen) > 1 and octets else (0, octets)
        try:
            chosen[which % len(chosen)](body)
        except ProtocolError:
            return

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(SEEDS):
            first = bytes((number % len(chosen),)) if len(chosen) > 1 else b""
            (Path(corpus) / f"{number:04d}").write_bytes(first + seed)
        limits = [f"-max_len={INPUT_OCTETS}", f"-timeout={INPUT_S}", f"-rss_limit_mb={MEMORY_MB}"]
        atheris.Setup([sys.argv[0], corpus, *limits, *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
