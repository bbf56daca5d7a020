"""MiniStack as a child process: free ports, a folder of its own, loopback only, gone when we are gone.

MiniStack binds 0.0.0.0, writes to /tmp and reads the user's AWS settings by default; here it does none of that. A
shell between us holds a pipe that we hold open: when this process ends in whatever way, kill -9 included, the shell
reads the end of the pipe and stops MiniStack.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Self

from simulators.cloud.assets import CloudError

if TYPE_CHECKING:
    from types import TracebackType

REGION = "us-east-1"
ACCOUNT = "000000000000"
START_S = 20.0
STOP_S = 5.0

_PROGRAM = Path(__file__).with_name("loopback.py")  # -P: its folder is no place to import from
_WATCH = '"$@" & child=$!; read -r _; kill "$child" 2>/dev/null; wait "$child"'


class MiniStack:
    """One MiniStack process.

    Args:
        folder: everything it writes: objects, temporary files of functions, `ministack.log`.
        certificate_life_s: life of certificates that are made from a signing request; 0 = as AWS, to the end of 2049.
    """

    def __init__(self, folder: Path, *, certificate_life_s: float = 0) -> None:
        self.folder = folder
        self._certificate_life_s = certificate_life_s
        self.port = 0
        self.mqtt_port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """Address of every AWS service."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def objects(self) -> Path:
        """Folder of the buckets: `<bucket>/<key>`, each object with a `.meta.json` beside it."""
        return self.folder / "s3" / ACCOUNT

    @property
    def log(self) -> Path:
        """What MiniStack and the functions say."""
        return self.folder / "ministack.log"

    def environment(self) -> dict[str, str]:
        """The environment of the process, and of every function that it runs."""
        kept = {
            k: v
            for k, v in os.environ.items()
            if k in ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH")
        }
        return (
            kept
            | {
                "BIND_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(self.port),
                "IOT_MTLS_PORT": str(self.mqtt_port),
                "SFTP_ENABLED": "0",
                "AUTH": "true",  # certificates are held to the policy of the template, functions to their roles
                "LAMBDA_EXECUTOR": "local",
                "MINISTACK_REGION": REGION,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "S3_PERSIST": "1",
                "S3_DATA_DIR": str(self.folder / "s3"),
                "TMPDIR": str(self.folder / "tmp"),
                "LOG_LEVEL": "INFO",
                "POWERTOOLS_LOG_LEVEL": "INFO",
                "OPENDCU_CERTIFICATE_LIFE_S": str(self._certificate_life_s or ""),
            }
        )

    def start(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            CloudError: it is not installed, ends at once, or does not answer within START_S.
        """
        if importlib.util.find_spec("ministack") is None:
            raise CloudError("the local cloud needs MiniStack: pip install 'opendcu[cloud]'")
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        for _attempt in range(3):  # a free port may be taken by somebody else before it is bound
            self.port, self.mqtt_port = free_port(), free_port()
            if self._start_once():
                return self
        raise CloudError(f"MiniStack does not start: see {self.log}")

    def _start_once(self) -> bool:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "sh", sys.executable, "-P", str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while self._process.poll() is None:
            if time.monotonic() > deadline:
                self.stop()
                raise CloudError(f"MiniStack does not answer after {START_S:.0f} s: see {self.log}")
            if self._answers() and _listens(self.mqtt_port):
                return True
            time.sleep(0.02)
        return False

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def running(self) -> bool:
        """Is the process alive?"""
        return self._process is not None and self._process.poll() is None

    def ca(self) -> bytes:
        """The certificate authority of its MQTT listener, PEM."""
        with urllib.request.urlopen(f"{self.endpoint}/_ministack/iot/ca.pem", timeout=10) as reply:
            return bytes(reply.read())

    def stop(self) -> None:
        """Stop it and everything it started; a second time does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def free_port() -> int:
    """A TCP port of the loopback that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
