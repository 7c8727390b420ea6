"""What a person types and reads: one clear line for every mistake, exit codes, no traceback, no secret."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.service import Service, until
from workers.cli import main
from workers.config_check import faults_of

BAD = """
streams:
  cam: {source: 'rtps://u:topsecret@host/x', fsp: 3}
queries:
  look: {streams: [cm], ask: hi}
sinks: ['mqt://host']
reducer: {name: sttm_streaming, spatial_treshold: 0.5}
modl: demo
"""
WORDS = ("fsp", "rtps", "mqt", "did you mean 'spatial_threshold'", "did you mean 'model'")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", [("check",), ("serve", "--config")])
def test_a_faulty_configuration_is_told_whole_and_not_served(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    run = _run(*command, str(path))
    assert run.returncode == 2
    for words in WORDS:
        assert words in run.stderr
    assert "topsecret" not in run.stderr + run.stdout
    assert "Traceback" not in run.stderr


def test_a_good_configuration_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "good.yaml"
    path.write_text("streams: {cam: {source: 'scene://hall'}}\n")
    assert main(["check", str(path)]) == 0
    assert "1 streams, 0 queries" in capsys.readouterr().out


def test_a_model_folder_without_weights_ends_serving_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llava_onevision"}')
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: {tmp_path}/model\nhttp: {{port: 0}}\nstore: {{path: '{tmp_path}/a.db'}}\n"
    )
    run = _run("serve", "--config", str(path))
    assert run.returncode == 2
    assert run.stderr.count("can't be loaded") == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("stream-sttm: model ")
    assert "can't be loaded" in last
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, "there is no config.json in it"),
        ("{", "its config.json can't be read"),
        ("[]", "its config.json can't be read"),
        ('{"model_type": "bert"}', "is of the family 'bert'; supported: "),
    ],
)
def test_check_tells_of_a_model_folder_that_can_not_be_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str | None, expected: str
) -> None:
    (tmp_path / "model").mkdir()
    if config is not None:
        (tmp_path / "model" / "config.json").write_text(config)
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {tmp_path}/model\n")
    assert main(["check", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"stream-sttm: {path}: model: ")
    assert expected in line


def test_check_tells_of_a_model_folder_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"model: {tmp_path}/nowhere\n")
    assert main(["check", str(path)]) == 2
    assert "there is no such folder" in capsys.readouterr().err
    path.write_text("model: some/model\n")  # a hub id, which is not looked up
    assert main(["check", str(path)]) == 0


def test_a_port_in_use_ends_serving_with_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path.write_text(f"http: {{port: {port}}}\nstore: {{path: '{tmp_path}/a.db'}}\n")
        run = _run("serve", "--config", str(path))
    assert run.returncode == 2
    assert str(port) in run.stderr
    assert "Traceback" not in run.stderr


def test_ask_prints_the_answer_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Service(tmp_path, streams={"cam": {"source": "scene://hall?seed=1"}}) as service:
        url = str(service.http.base_url)
        until(lambda: service.ask("cam", "how many objects are there?").is_success, "an answer")
        assert main(["ask", "cam", "is there a red circle?", "--url", url]) == 0
        assert capsys.readouterr().out.strip() in ("yes", "no")
        assert main(["ask", "cm", "is there a red circle?", "--url", url]) == 1
        assert "did you mean 'cam'" in capsys.readouterr().err
    assert main(["ask", "cam", "hi", "--url", url]) == 1
    assert "does not answer as stream-sttm does" in capsys.readouterr().err


def test_looking_for_cameras_where_none_answers_is_one_line() -> None:
    run = _run("discover", "--seconds", "0.1")
    assert run.returncode == 1
    assert len(run.stderr.strip().splitlines()) == 1
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_good_end_at_any_time_and_as_often_as_it_comes(
    tmp_path: Path, number: signal.Signals
) -> None:
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc to see what a process is doing")
    """Sent while torch is being imported, and again and again while a running service stops."""
    path = tmp_path / "config.yaml"
    path.write_text(f"http: {{port: 0}}\nstore: {{path: '{tmp_path}/a.db'}}\n")
    command = [sys.executable, "-m", "workers.cli", "serve", "--config", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as early:
        until(lambda: "torch/" in Path(f"/proc/{early.pid}/maps").read_text(), "torch is imported")
        early.send_signal(number)
        assert early.communicate(timeout=30)[1] == ""
    assert early.returncode == 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        while "ready after" not in running.stderr.readline():
            assert running.poll() is None
        while running.poll() is None:
            running.send_signal(number)
            time.sleep(0.02)
        assert "Traceback" not in running.stderr.read()
    assert running.returncode == 0


def test_a_model_that_is_still_being_fetched_holds_nobody_up(tmp_path: Path) -> None:
    """From a hub that takes the request and never says a word."""
    path = tmp_path / "config.yaml"
    path.write_text(f"model: some/one\nhttp: {{port: 0}}\nstore: {{path: '{tmp_path}/a.db'}}\n")
    command = [sys.executable, "-m", "workers.cli", "serve", "--config", str(path)]
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(60)
        waits = {"HF_HUB_ETAG_TIMEOUT": "600", "HF_HUB_DOWNLOAD_TIMEOUT": "600"}
        there = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HUB_OFFLINE": "0"}
        environment = {**os.environ, **waits, **there, "HF_HOME": str(tmp_path)}
        with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as running:
            try:
                asking, _ = hub.accept()
                with asking:
                    running.terminate()
                    assert running.wait(20) == 0
            finally:
                running.kill()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--mqtt", "mqtt://me:topsecret@127.0.0.1:9"), 1, "refused; check --mqtt"),
        (("--mqtt", "nonsense"), 2, "has no scheme"),
        (("--port", "99999"), 2, "99999 is no port"),
        (("--seconds", "0"), 2, "no time to run"),
        (("--seconds", "nan"), 2, "no time to run"),
    ],
)
def test_what_the_demo_can_not_do_is_one_line(
    arguments: tuple[str, ...], status: int, words: str
) -> None:
    run = _run("demo", "--port", "0", *arguments)
    assert run.returncode == status
    assert words in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr
    assert "topsecret" not in run.stderr + run.stdout


def test_a_source_that_the_rules_forbid_is_a_fault_of_the_configuration() -> None:
    sources = ["rtsp://10.1.1.1/x", "rtsp://me:topsecret@192.168.1.1/x", "http://10.1.1.1/x"]
    rules = {"schemes": ["rtsp"], "hosts": ["10.0.0.0/8"]}
    tree = {"streams": {"a": {"source": sources}}, "sources": rules}
    told = faults_of(tree)
    assert len(told) == 2
    assert all(fault.startswith("streams.a.source: ") for fault in told)
    assert "sources.hosts" in told[0]
    assert "sources.schemes" in told[1]
    assert "topsecret" not in "".join(told)
    assert faults_of({**tree, "sources": {"hosts": 7}}) == []  # told where its own fault is


def test_faults_of_an_odd_tree_are_found_without_an_exception() -> None:
    trees = (
        {"streams": 3, "sinks": "x", "reducer": []},
        {"streams": {"a": 1, "b": {"source": 5}}, "sinks": [7, None]},
        {"reducer": {"name": 5}},
        {"memory": {"retention": "fifoo"}},
        {"memory": {"retention": {"name": "tiered", "recent": 2}}},
        {"memory": {"retention": "lru"}},
        {"memory": 3},
    )
    assert [len(faults_of(tree)) for tree in trees] == [0, 0, 1, 1, 1, 0, 0]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_demo_ends_by_itself_with_one_line_and_answers_from_end_to_end() -> None:
    run = _run("demo", "--seconds", "12", "--port", "0")
    assert run.returncode == 0, run.stderr
    last = run.stdout.strip().splitlines()[-1]
    assert last.startswith("demo: 12 s, ")
    assert " true" in run.stdout
    assert "Traceback" not in run.stderr
