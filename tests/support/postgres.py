"""A real PostgreSQL on a free loopback port, in a folder of its own, run by whoever is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.mosquitto import free_port

PASSWORD = "s3cr:t/@pg"
_PATIENCE = 60.0  # seconds


def why_missing() -> str | None:
    """Return what this machine lacks of it."""
    if _program("initdb") is None:
        return "needs PostgreSQL (Debian: postgresql)"
    return None if find_spec("psycopg") else "needs psycopg (extra postgres)"


def _program(name: str) -> str | None:
    """PostgreSQL's programs are in a folder of their version's own."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ["PATH"]]))


class Postgres:
    """A server with the user `keeper` and any number of databases."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._user = None if os.geteuid() else pwd.getpwnam("nobody")
        self._process: subprocess.Popen[bytes] | None = None
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if self._user is not None:
            for path in (folder, secret):
                os.chown(path, self._user.pw_uid, self._user.pw_gid)
        self._run(
            "initdb", "-D", str(folder / "data"), "-U", "keeper", "-A", "scram-sha-256",
            "--pwfile", str(secret), "-E", "UTF8", "--locale=C.UTF-8", "--no-sync",
        )  # fmt: skip

    def url(self, database: str = "postgres", *, password: str = PASSWORD) -> str:
        """Return a database's URL."""
        return f"postgresql://keeper:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it; returns once it takes connections."""
        program = _program("postgres")
        assert program is not None
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-D", str(self.folder / "data"), "-p", str(self.port),
                 "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                 "-c", "fsync=off", "-c", "max_connections=20", "-c", "shared_buffers=16MB"],
                stdout=log, stderr=log, cwd=self.folder, **self._as_user(),
            )  # fmt: skip
        deadline = time.monotonic() + _PATIENCE
        while self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port), check=False):
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it at once, connections or not; returns when it is gone."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_PATIENCE)
            self._process = None

    def _as_user(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _run(self, name: str, *words: str, check: bool = True) -> int:
        program = _program(name)
        assert program is not None
        done = subprocess.run(
            [program, *words], capture_output=True, cwd=self.folder, **self._as_user()
        )
        assert not (check and done.returncode), done.stderr.decode()
        return done.returncode


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Yield a running server, the same for all tests."""
    if (why := why_missing()) is not None:
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = Postgres(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
