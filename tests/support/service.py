"""The real service as a process of its own, as a user starts it, for tests that look at it from outside."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

PATIENCE = 60.0  # seconds; machines that run tests are slow at times


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Return the condition's value as soon as it is true. Fails with `what` in words if that takes too long."""
    deadline = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.05)
    return value


class Service:
    """`stream-sttm serve --config FILE` on a free port; with `files` it may open so many, and no more."""

    def __init__(self, folder: Path, *, files: int | None = None, **config: Any) -> None:
        self.folder = folder
        self._limits = ["prlimit", f"--nofile={files}:{files}"] if files is not None else []
        self.log = folder / "service.log"
        self.config = folder / "config.yaml"
        settings = {
            "http": {"host": "127.0.0.1", "port": 0},
            "store": {"path": str(folder / "answers.db")},
            **config,
        }
        self.config.write_text(yaml.safe_dump(settings))
        self._process: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(timeout=30)

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *self._limits,
                    *(sys.executable, "-m", "workers.cli", "serve", "--config", str(self.config)),
                ],
                stdout=log,
                stderr=log,
                env=environment,
            )
        try:
            port = until(self._port, "the service listens")
            self.http.base_url = httpx.URL(f"http://127.0.0.1:{port}")
            until(self._is_ready, "the service is ready")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.stop(signal.SIGKILL)

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The process, once there is one."""
        return self._process

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End it; returns the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(how)
        return self._process.wait(30)

    def get(self, path: str) -> Any:
        """Return the JSON at `path`."""
        reply = self.http.get(path)
        assert reply.is_success, reply.text
        return reply.json()

    def state(self, stream: str) -> str:
        """Return a stream's state, over HTTP."""
        return str(self.get(f"/api/v1/streams/{stream}")["state"])

    def ask(self, stream: str, question: str) -> httpx.Response:
        """Ask over HTTP."""
        return self.http.post("/api/v1/ask", json={"stream": stream, "question": question})

    def _port(self) -> int | None:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.log.read_text())
        return int(found[1]) if found else None

    def _is_ready(self) -> bool:
        return self.http.get("/v1/health/ready").status_code == 200
