"""A worker's process as its parent sees it: started, asked, given up when it does not answer, started again."""

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection

from ..errors import UserError
from .child import command, environment
from .config import EnvConfig
from .rendering import choose_backend

LAST_LINES = 3  # of a lost worker's stderr, told with its end
_SERVE = "from worldenv_cli.envs.worker import main\nmain()"


class WorkerLost(Exception):
    """A worker ended, or did not answer in time; the message says which, without its name."""


class WorkerProcess:
    """One child process and the socket to it, a pair that it inherits: no path, which a long TMPDIR would make too long, and nobody else can connect.

    It has a process group of its own, so that Ctrl-C reaches the parent alone, and ends when the parent's end of the socket is closed, by whatever
    ended the parent. `limit` is the seconds that it may take for each row that it is asked about.
    """

    def __init__(self, config: EnvConfig):
        self.config, self.limit = config, config.worker_timeout
        self.python = config.python or sys.executable
        if shutil.which(self.python) is None:
            raise UserError(f"env.python: {self.python} is not there or cannot be run, expected a Python interpreter; check the path")
        self.backend = choose_backend(config.renderer, self.python)
        self.start()

    def start(self) -> None:
        """Begin a new process; `versions` is what it must be asked first."""
        here, there = socket.socketpair()
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # a process can stop in the middle of an answer
            here.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(self.limit) + 1, 0))
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command(self.python, _SERVE, str(there.fileno()), package=True),
            # the software renderer's own threads, and those of matrix products, only get in each other's way
            env=environment(MUJOCO_GL=self.backend, OMP_NUM_THREADS="1", LP_NUM_THREADS="1"),
            stdin=subprocess.DEVNULL,
            stderr=self.stderr,
            pass_fds=[there.fileno()],
            process_group=0,
        )
        there.close()
        self.connection = Connection(here.detach())
        self._owes, self._given_up = False, ""
        self._send(self.config.model_dump_json())
        self.ask("versions")

    def versions(self) -> tuple:
        """The answer to its first question, as from `receive`. Raises UserError where there is none: then the interpreter is at fault."""
        try:
            return self.receive(2)
        except WorkerLost as lost:
            needs = f"has it pydantic, numpy and {self.config.title}?"
            raise UserError(f"env.python: a worker under {self.python} did not start: it {lost}{self.last_words()}; {needs}") from lost

    def ask(self, verb: str, *arguments) -> None:
        """Send a question, of which `receive` gets the answer. A process that has ended is noticed there."""
        if self._owes:  # an answer that an interrupted caller never read would be taken for this one's
            self.stop("was interrupted at work")
        self._send((verb, arguments))
        self._owes = True

    def receive(self, rows: int) -> tuple:
        """(True, the answer), (False, what the user should know) or (None, a traceback), to a question about so many rows. Raises WorkerLost."""
        seconds = self.limit * rows
        try:
            if not self.connection.poll(seconds):
                raise BlockingIOError
            answer = self.connection.recv()
        except BlockingIOError:
            self.stop(f"did not answer for {seconds:g} s (env.worker_timeout is {self.limit:g} s for each row)")
        except (EOFError, OSError):
            self._end(seconds=5)
        else:
            self._owes = False
            return answer
        code = self.process.returncode
        ended = f"was killed by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        raise WorkerLost(self._given_up or ended)

    def last_words(self) -> str:
        """The last lines that it wrote on stderr, to follow a message; empty where it wrote none."""
        size = os.fstat(self.stderr.fileno()).st_size
        text = os.pread(self.stderr.fileno(), 4096, max(size - 4096, 0)).decode(errors="replace")
        lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
        return f" (its last words: {' | '.join(lines[-LAST_LINES:])})" if lines else ""

    def stop(self, reason: str) -> None:
        """End it at once, whatever it is doing; the next `receive` tells the reason."""
        self._given_up = reason
        self.process.kill()
        self._end(seconds=None)

    def close(self) -> None:
        """Let it end by itself; after five seconds it is ended."""
        self._end(seconds=5)
        self.stderr.close()

    def _send(self, message) -> None:
        try:
            self.connection.send(message)
        except BlockingIOError:
            self.stop("took nothing more")
        except OSError:
            self.connection.close()

    def _end(self, seconds: float | None) -> None:
        self.connection.close()
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
