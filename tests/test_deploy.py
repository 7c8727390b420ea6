"""deploy/ as far as it can be checked without a container engine: whole, accepted, pointing at each other."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_sttm.config.loading import load
from tests.support.dashboard import BOARD
from tests.support.mosquitto import free_port
from tests.support.mosquitto import missing as missing_mosquitto
from tests.support.prometheus import configuration, promtool, require
from workers.config_check import faults_of
from workers.connections import DESCRIPTORS

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
COPIED = [
    source
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
    for source in line.split()[:-1]
]


def mounts(service: str) -> dict[str, str]:
    """What a service mounts, by its place in the container."""
    pairs = [volume.split(":")[:2] for volume in SERVICES[service].get("volumes", [])]
    return {inside: outside for outside, inside in pairs}


def on_host(service: str, inside: str) -> Path:
    """The file that a service sees at `inside`."""
    return DEPLOY / mounts(service)[inside]


# --- compose.yaml


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_service_mounts_and_waits_for_exists(service: str) -> None:
    for inside, outside in mounts(service).items():
        is_file = outside.startswith(".")
        assert (DEPLOY / outside).is_file() if is_file else outside in COMPOSE["volumes"], inside
    assert set(SERVICES[service].get("depends_on", [])) <= set(SERVICES)
    for secret in SERVICES[service].get("secrets", []):
        assert secret["source"] in COMPOSE["secrets"]


def test_every_named_volume_and_secret_is_used() -> None:
    used = {outside for service in SERVICES for outside in mounts(service).values()}
    assert set(COMPOSE["volumes"]) <= used
    secrets = {
        item["source"] for service in SERVICES.values() for item in service.get("secrets", [])
    }
    assert set(COMPOSE["secrets"]) == secrets


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_has_a_version(service: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", SERVICES[service]["image"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_port_is_published_on_the_loopback_address_alone(service: str) -> None:
    for port in SERVICES[service]["ports"]:
        assert port.startswith("127.0.0.1:"), port


def test_every_image_with_a_shell_checks_its_health_and_ours_asks_for_readiness() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {
        "mediamtx"
    }
    assert any("/v1/health/ready" in word for word in SERVICES["service"]["healthcheck"]["test"])
    assert "/v1/health/ready" in DOCKERFILE


def test_no_file_holds_a_secret() -> None:
    for path in DEPLOY.rglob("*"):
        for line in path.read_text().splitlines() if path.is_file() else ():
            if found := re.search(
                r"(?i)^[^#]*\b\w*(?:password|token|secret)\w*\"?\s*[:=]\s*(\S+)", line
            ):
                assert "${" in line or found[1] in ("STREAM_STTM_TOKEN", "file"), (
                    f"{path.name}: {line}"
                )


def test_the_gpu_file_changes_services_that_exist() -> None:
    over = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())
    assert set(over["services"]) <= set(SERVICES)
    assert set(over["services"]["service"]["build"]["args"]) <= set(
        re.findall(r"^ARG (\w+)", DOCKERFILE, re.M)
    )


# --- the service in its image


def test_everything_the_image_copies_exists_and_is_not_ignored() -> None:
    ignored = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored[0] == "*"
    assert COPIED
    for source in COPIED:
        name = source.removeprefix("./")
        assert (ROOT / name).exists(), source
        assert any(fnmatch.fnmatch(name, line[1:]) for line in ignored if line.startswith("!"))


def test_the_image_runs_as_nobody_of_importance() -> None:
    *_, last = re.findall(r"^FROM .*?(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    assert re.search(r"^USER (\d+):(\d+)$", last, re.M)
    assert "USER 0" not in last


def test_a_wheel_of_just_what_the_image_copies_is_whole(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        source = ROOT / name
        target = context / name
        shutil.copytree(source, target, ignore=skip) if source.is_dir() else shutil.copy(
            source, target
        )
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "dist"],
        cwd=context,
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = {
        path.relative_to(context).as_posix()
        for package in ("stream_sttm", "workers")
        for path in (context / package).rglob("*")
        if path.is_file()
    }
    assert tracked <= packed
    for needed in ("stream_sttm/demo/model/model.safetensors", "stream_sttm/api/page/index.html"):
        assert needed in packed


def test_the_service_finds_its_configuration_broker_and_volume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STREAM_STTM_TOKEN", "word")
    path = on_host("service", "/etc/stream-sttm/config.yaml")
    assert '"/etc/stream-sttm/config.yaml"' in DOCKERFILE
    settings = load(path, check=faults_of)
    assert settings.queries
    assert settings.sinks == ["mqtt://mosquitto:1883/stream_sttm"]
    assert settings.store.path.startswith("/var/lib/stream-sttm/")
    assert "/var/lib/stream-sttm" in mounts("service")
    assert f"127.0.0.1:8080:{settings.http.port}" in SERVICES["service"]["ports"]


def test_the_commented_camera_of_the_configuration_works_when_uncommented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAM_STTM_TOKEN", "word")
    text = (DEPLOY / "config.yaml").read_text()
    path = tmp_path / "config.yaml"
    path.write_text(re.sub(r"^#(?=  \w+: \{)", "", text, flags=re.M))
    settings = load(path, check=faults_of)
    source = settings.streams["camera"].source
    assert source == "rtsp://mediamtx:8554/camera"
    assert "mediamtx" in SERVICES
    assert "camera" in yaml.safe_load((DEPLOY / "mediamtx.yml").read_text())["paths"]
    assert "MTX_PATHS_CAMERA_SOURCE" in SERVICES["mediamtx"]["environment"]


# --- watching


@pytest.mark.server
def test_promtool_accepts_the_prometheus_configuration(tmp_path: Path) -> None:
    require("promtool")
    promtool("check", "config", "--syntax-only", DEPLOY / "prometheus.yml")
    here = configuration(tmp_path, target="127.0.0.1:1", token="x", interval="5s")
    assert "SUCCESS" in promtool("check", "config", here)


def test_prometheus_finds_service_token_and_rules() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    assert job["job_name"] == "stream-sttm"
    ((target,),) = [config["targets"] for config in job["static_configs"]]
    name, port = target.split(":")
    assert SERVICES[name]["ports"] == [f"127.0.0.1:8080:{port}"]
    (secret,) = SERVICES["prometheus"]["secrets"]
    assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret['source']}"
    for rules in PROMETHEUS["rule_files"]:
        assert on_host("prometheus", rules) == DEPLOY / "../dashboards/alerts.yaml"


def test_grafana_finds_prometheus_and_the_board() -> None:
    inside = "/etc/grafana/provisioning"
    sources = yaml.safe_load(
        on_host("grafana", f"{inside}/datasources/datasources.yaml").read_text()
    )
    (source,) = sources["datasources"]
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert source["uid"] == variables["datasource"]["current"]["value"] == "prometheus"
    assert source["type"] == variables["datasource"]["query"]
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == PROMETHEUS["global"]["scrape_interval"]
    (provider,) = yaml.safe_load(
        on_host("grafana", f"{inside}/dashboards/boards.yaml").read_text()
    )["providers"]
    board = f"{provider['options']['path']}/stream.json"
    assert json.loads(on_host("grafana", board).read_text()) == BOARD
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == board


@pytest.mark.server
def test_mosquitto_accepts_its_configuration(tmp_path: Path) -> None:
    if missing_mosquitto():
        pytest.skip("needs mosquitto (Debian: mosquitto, mosquitto-clients)")
    text = on_host("mosquitto", "/mosquitto/config/mosquitto.conf").read_text()
    assert "persistence_location /mosquitto/data/" in text
    assert "/mosquitto/data" in mounts("mosquitto")
    port = free_port()
    config = tmp_path / "mosquitto.conf"
    config.write_text(
        text.replace("listener 1883", f"listener {port} 127.0.0.1").replace(
            "/mosquitto/data/", f"{tmp_path}/"
        )
        + "user root\n"
    )
    process = subprocess.Popen(
        ["mosquitto", "-c", config], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            assert process.poll() is None, process.communicate()[0]
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        check = SERVICES["mosquitto"]["healthcheck"]["test"][1:]
        words = [word.replace("$$", "$") for word in check]
        at = words.index("127.0.0.1") + 1
        subprocess.run([*words[:at], "-p", str(port), *words[at:]], check=True, timeout=10)
    finally:
        process.terminate()
        told = process.communicate(timeout=10)[0]
    assert "Error" not in told


def test_unit_and_compose_allow_as_many_files_as_the_service_asks_for() -> None:
    unit = (DEPLOY / "stream-sttm.service").read_text()
    assert re.search(r"^LimitNOFILE=(\d+)$", unit, re.M)[1] == str(DESCRIPTORS)  # type: ignore[index]
    nofile = SERVICES["service"]["ulimits"]["nofile"]
    assert nofile == {"soft": DESCRIPTORS, "hard": DESCRIPTORS}


# --- systemd


def test_systemd_accepts_the_unit_and_finds_it_well_confined(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (Debian: systemd)")
    unit = tmp_path / "stream-sttm.service"
    text = (DEPLOY / "stream-sttm.service").read_text()
    unit.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.M))
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stdout  # exposure over 2.0 of 10 would be an error
