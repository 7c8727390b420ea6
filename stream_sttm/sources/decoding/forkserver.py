"""Forks a process for every decoder from one small process that has FFmpeg loaded.

FFmpeg can hang, leak and crash. A thread that does so can't be ended, a process can. The fork server starts with the
first stream, knows its children by serial numbers and reaps them. It ends with us, and they end with it. It has one
thread only, which makes forking safe. Knows nothing of video: worker.py is what a child does.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading

_ORDER = struct.Struct("!cI")  # what to do, with which child
_FORK, _KILL = b"F", b"K"
_PROMPT = 1.0  # seconds in which an order is taken; they are a few bytes each
_PATIENCE = 5.0  # seconds that a server which is told to end gets


class ForkServer:
    """Our side of the fork server. Starts it when it is first needed, and again where it died. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serials = itertools.count(1)
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self) -> tuple[socket.socket, int]:
        """Fork a decoder process. Returns our end of its socket, which does not block, and its serial number."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, self._lock:
            serial = next(self._serials)
            order = _ORDER.pack(_FORK, serial)
            for attempt in (1, 2):
                try:
                    socket.send_fds(self._started(), [order], [theirs.fileno()])
                    break
                except OSError:
                    self._stop()
                    if attempt == 2:
                        ours.close()
                        raise
        return ours, serial

    def kill(self, serial: int) -> None:
        """End a decoder process now, whatever it is doing; nothing happens where it has ended."""
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None:
                self._control.sendall(_ORDER.pack(_KILL, serial))

    def close(self) -> None:
        """End the server and all its children."""
        with self._lock:
            self._stop()

    def _started(self) -> socket.socket:
        if self._control is None:
            ours, theirs = socket.socketpair()
            ours.settimeout(_PROMPT)
            with theirs:
                self._process = _spawn(theirs.fileno())
            self._control = ours
            atexit.register(self.close)
        return self._control

    def _stop(self) -> None:
        atexit.unregister(self.close)
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._control = self._process = None


def _spawn(control: int) -> subprocess.Popen[bytes]:
    """Start the server as a fresh interpreter with our import path."""
    program = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        f"from stream_sttm.sources.decoding import forkserver; forkserver.serve({control})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        pass_fds=[control],
        # its libraries may not start threads, and Ctrl-C is for us alone
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def serve(control_fd: int) -> None:
    """Run the server: fork and kill as ordered, until the other side is gone."""
    from stream_sttm.sources.decoding import worker as decoder

    control = socket.socket(fileno=control_fd)
    children: dict[int, int] = {}
    signal.signal(signal.SIGCHLD, lambda *_: None)
    wakeup, wakeup_writer = socket.socketpair()
    wakeup_writer.setblocking(False)
    signal.set_wakeup_fd(wakeup_writer.fileno(), warn_on_full_buffer=False)
    gc.freeze()  # pages that are not written to stay shared with the children
    while True:
        ready, _, _ = select.select([control, wakeup], [], [])
        if wakeup in ready:
            wakeup.recv(4096)
            _reap(children)
            continue
        order, fds, _, _ = socket.recv_fds(control, _ORDER.size, 1)
        if not order:
            break
        what, serial = _ORDER.unpack(order)
        if what == _KILL and serial in children:
            os.kill(children[serial], signal.SIGKILL)
        if what == _FORK:
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for ours in (control, wakeup, wakeup_writer):
                    ours.close()
                decoder.run(socket.socket(fileno=fds[0]))
            children[serial] = pid
            os.close(fds[0])
    for pid in children.values():
        os.kill(pid, signal.SIGKILL)


def _reap(children: dict[int, int]) -> None:
    for serial, pid in list(children.items()):
        if os.waitpid(pid, os.WNOHANG)[0]:
            del children[serial]
