"""What the counter kills kill: `opendcu read` in a child that ends itself by SIGKILL before its n-th step.

A step is a call that leaves the process, of any thread: a statement of SQLite, a send or receive on a socket, a sync. They
are counted by a profile function, so nothing of the product is replaced. A fork server: it imports once, and forks one child
per line "<n> <argument> ..." on stdin; n = 0 never ends it. Answers "ended <wait status> <steps>".
"""

import itertools
import os
import signal
import sys
import threading

from edge_core.cli.main import run

STEPS = frozenset(
    ("execute", "executemany", "send", "sendall", "sendto", "recv", "recv_into", "fsync", "commit")
)


class Fuse:
    """Ends the process before a step."""

    def __init__(self, last):
        self.left = itertools.count(1)
        self.last = last
        self.steps = 0

    def __call__(self, frame, event, argument):
        if event == "c_call" and argument.__name__ in STEPS:
            self.steps = next(self.left)
            if self.steps == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def main():
    for line in sys.stdin:
        number, *arguments = line.split()
        told, tell = os.pipe()
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            fuse = Fuse(int(number))
            threading.setprofile(fuse)
            sys.setprofile(fuse)
            code = run(arguments)
            sys.setprofile(None)
            os.write(tell, b"%d" % fuse.steps)
            os._exit(code)
        os.close(tell)
        _, status = os.waitpid(pid, 0)
        steps = os.read(told, 20)
        os.close(told)
        print("ended", status, int(steps or b"0"), flush=True)


if __name__ == "__main__":
    main()
