"""A real mosquitto on a free loopback port, and mosquitto_sub as an outside reader of it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

USER, PASSWORD = "cam-user", "s3cr:t/@p"
_PATIENCE = 10.0  # seconds


def free_port() -> int:
    """Return a loopback port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def missing() -> list[str]:
    """Which of its programs this machine lacks."""
    programs = ("mosquitto", "mosquitto_sub", "mosquitto_passwd")
    return [name for name in programs if shutil.which(name) is None]


class Mosquitto:
    """A broker that can be stopped, killed, frozen and started again on the same port."""

    def __init__(self, folder: Path, *, with_password: bool = False, extra: str = "") -> None:
        self.port = free_port()
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        lines = [f"listener {self.port} 127.0.0.1", "user root", "persistence true"]
        lines += [f"persistence_location {folder}/", extra]
        if with_password:
            passwords = folder / "passwords"
            subprocess.run(
                ["mosquitto_passwd", "-b", "-c", passwords, USER, PASSWORD],
                check=True,
                capture_output=True,
            )
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        else:
            lines += ["allow_anonymous true"]
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        """Its URL as a sink, with the prefix `test`."""
        return f"mqtt://127.0.0.1:{self.port}/test"

    def start(self) -> None:
        """Start it; returns once it accepts connections."""
        with (self.folder / "mosquitto.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["mosquitto", "-c", self._config], stdout=log, stderr=log
            )
        deadline = time.monotonic() + _PATIENCE
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            log_text = (self.folder / "mosquitto.log").read_text()
            assert time.monotonic() < deadline, f"mosquitto does not start: {log_text}"
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it with `how`; returns once it is gone."""
        if self._process is not None:
            if how is not signal.SIGKILL:  # which ends it frozen, before it does anything more
                self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(_PATIENCE)
            self._process = None

    def freeze(self) -> None:
        """Let it hold its connections but do nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @contextmanager
    def reader(self, topic: str = "test/#", *options: str) -> Iterator[Reader]:
        """mosquitto_sub on `topic`, subscribed before the `with` body runs."""
        output = self.folder / f"reader{len(list(self.folder.glob('reader*')))}.txt"
        command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(self.port), "-d", "-q", "1"]
        with output.open("wb") as file:
            process = subprocess.Popen(
                ["stdbuf", "-oL", *command, "-F", "%j", "-t", topic, *options],
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + _PATIENCE
            while "Subscribed" not in output.read_text():
                assert time.monotonic() < deadline, output.read_text()
                time.sleep(0.02)
            yield Reader(output)
        finally:
            process.kill()  # asked to end while it reads, it may take a minute
            process.wait(_PATIENCE)


class Reader:
    """What mosquitto_sub has printed so far."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def messages(self) -> list[dict[str, Any]]:
        """Every message received: topic, payload, qos, retain (1 where it was kept by the broker)."""
        lines = self._output.read_text(errors="replace").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def count(self) -> int:
        """How many messages there are, without reading them."""
        return self._output.read_bytes().count(b"\n{")

    def payloads(self, topic: str) -> list[str]:
        """Return the payloads received on `topic`, in order."""
        return [item["payload"] for item in self.messages() if item["topic"] == topic]


MakeBroker = Callable[..., Mosquitto]


@pytest.fixture
def make_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeBroker]:
    """Yield a maker of brokers (not started) that are killed at the end of the test."""
    if missing():
        pytest.skip("needs mosquitto (Debian: mosquitto, mosquitto-clients)")
    with ExitStack() as stack:

        def make(**options: Any) -> Mosquitto:
            broker = Mosquitto(tmp_path_factory.mktemp("mosquitto"), **options)
            stack.callback(broker.stop, signal.SIGKILL)
            return broker

        yield make


@pytest.fixture
def broker(make_broker: MakeBroker) -> Mosquitto:
    """Return a running broker without passwords."""
    made = make_broker()
    made.start()
    return made
