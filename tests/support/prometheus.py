"""A real Prometheus on a free loopback port, and promtool."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from tests.support.mosquitto import free_port
from tests.support.service import until

ROOT = Path(__file__).parents[2]


def require(*programs: str) -> None:
    """Skip the test where Debian's prometheus package is missing."""
    if missing := [name for name in programs if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)} (Debian: prometheus)")


def promtool(*arguments: str | Path) -> str:
    """Run promtool; fails with what it says where it isn't satisfied."""
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def configuration(folder: Path, *, target: str, token: str, interval: str) -> Path:
    """deploy/prometheus.yml as a file of this machine: same job, its target, token and rules found here."""
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    secret = folder / "token"
    secret.write_text(token)
    config["global"] = dict.fromkeys(config["global"], interval)
    config["rule_files"] = [
        str(ROOT / "dashboards" / Path(name).name) for name in config["rule_files"]
    ]
    (job,) = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(secret)
    job["static_configs"] = [{"targets": [target]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


class Prometheus:
    """Scrapes and evaluates what deploy/prometheus.yml says, every second."""

    def __init__(self, folder: Path, *, target: str, token: str) -> None:
        self.folder = folder
        self._config = configuration(folder, target=target, token=token, interval="1s")
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self._port}/", timeout=30)

    def __enter__(self) -> Self:
        with (self.folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            until(self._is_ready, "Prometheus is ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def api(self, path: str, **parameters: str) -> Any:
        """Return the `data` of an answer of the HTTP API."""
        reply = self._http.get(f"api/v1/{path}", params=parameters)
        body = reply.json()
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query: label set under `metric`, sample under `value`."""
        data = self.api("query", query=expression)
        assert data["resultType"] == "vector", data
        result: list[dict[str, Any]] = data["result"]
        return result

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "prometheus.log").read_text()
        with suppress(httpx.TransportError):
            return self._http.get("-/ready").status_code == 200
        return False
