"""Files that only their owner may read."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from edge_core.config.tables import ConfigErrors
from edge_core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILE_BYTES = 64 << 20


def read_private(path: Path) -> bytes:
    """The content of a file that only its owner may read.

    Raises:
        ConfigErrors: it is missing, too large, no regular file, or others may read or write it.
    """

    def refuse(problem: str, hint: str = "") -> ConfigErrors:
        return ConfigErrors([ConfigError(str(path), "", "", problem, hint)])

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise refuse("no such file") from None
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    try:  # the descriptor that is checked is the one that is read
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise refuse("is no regular file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise refuse(f"mode {mode:04o}: others than its owner may use it", f"chmod 600 {path}")
        if status.st_uid not in (0, os.geteuid()):
            raise refuse(f"belongs to user {status.st_uid}, we are {os.geteuid()}", "chown it")
        if status.st_size > MAX_FILE_BYTES:
            raise refuse(f"is larger than {MAX_FILE_BYTES >> 20} MiB")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(descriptor)


def write_private(path: Path, octets: bytes) -> None:
    """Put a file with mode 0600 there in one step: whole and on the disk, or not at all.

    Raises:
        OSError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(octets)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
