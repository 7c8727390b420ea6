"""A configuration that changes while the service runs: only what changed restarts, and a fault changes nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_sttm.config.settings import Settings
from stream_sttm.errors import ConfigError
from tests.support.answers import until as soon
from tests.support.service import Service, until
from workers.config_watch import ConfigFile

CALM = {"fps": 2, "stall_after": 120}  # on a busy machine a drawn scene can halt for seconds
SCENES = {
    "hall": {"source": "scene://hall?seed=1", **CALM},
    "yard": {"source": "scene://yard?seed=2", **CALM},
}
LOOK = {"streams": ["hall"], "ask": "how many objects are there?", "every": 1, "announce": "always"}


def write(service: Service, **changed: Any) -> None:
    """Change keys of the service's file in one go, as an editor does."""
    tree = yaml.safe_load(service.config.read_text()) | changed
    whole = service.config.with_suffix(".new")
    whole.write_text(yaml.safe_dump(tree))
    whole.replace(service.config)


def reload(service: Service, status: int = 200) -> Any:
    reply = service.http.post("/api/v1/config/reload")
    assert reply.status_code == status, reply.text
    return reply.json()


def frames(service: Service, stream: str) -> float:
    return float(value(service, f'stream_sttm_frames_received_total{{stream="{stream}"}}'))


def value(service: Service, series: str) -> float:
    """A series' value on /metrics, 0 where there is none."""
    lines = service.http.get("/metrics").text.splitlines()
    return next((float(ln.rpartition(" ")[2]) for ln in lines if ln.startswith(f"{series} ")), 0.0)


def window_start(service: Service, stream: str) -> float:
    reply = until(
        lambda: (r := service.ask(stream, "how many objects are there?")).is_success and r,
        f"{stream} answers",
    )
    return float(reply.json()["window"][0])


@pytest.mark.timeout(240)
def test_only_what_changed_restarts(tmp_path: Path) -> None:
    with Service(tmp_path, streams=SCENES, queries={"look": LOOK}, watch_file=None) as service:
        first = yaml.safe_load(service.config.read_text())
        began = {name: window_start(service, name) for name in SCENES}
        since = {name: service.get(f"/api/v1/streams/{name}")["since"] for name in SCENES}

        # Another stream and another query: nobody else notices.
        streams = {**SCENES, "roof": {"source": "scene://roof?seed=3", **CALM}}
        write(
            service, streams=streams, queries={"look": LOOK, "roof": {**LOOK, "streams": ["roof"]}}
        )
        told = reload(service)
        assert told["streams"] == {"added": ["roof"], "removed": [], "changed": []}
        assert told["queries"]["added"] == ["roof"]
        until(lambda: service.get("/api/v1/answers?query=roof")["answers"], "the new query answers")

        # What is read differently is opened anew, with its memory where that still fits.
        streams = {
            "hall": SCENES["hall"],
            "yard": {**SCENES["yard"], "max_side": 320},
            "roof": {**streams["roof"], "fps": 4},
        }
        roof_began = window_start(service, "roof")
        write(service, streams=streams)
        assert sorted(reload(service)["streams"]["changed"]) == ["roof", "yard"]
        until(
            lambda: service.get("/api/v1/streams/yard")["since"] > since["yard"], "yard opens anew"
        )
        until(lambda: service.state("yard") == "online", "and is back")
        assert window_start(service, "yard") == began["yard"]
        assert window_start(service, "roof") > roof_began

        # A stream less.
        write(service, streams={"hall": SCENES["hall"], "yard": streams["yard"]},
              queries={"look": LOOK})  # fmt: skip
        assert reload(service)["streams"]["removed"] == ["roof"]
        assert service.http.get("/api/v1/streams/roof").status_code == 404
        assert service.ask("roof", "hi").status_code == 404
        assert reload(service)["streams"]["removed"] == []

        # Somebody may publish a stream from the moment that it waits for that.
        offer = {"content": b"no offer", "headers": {"Content-Type": "application/sdp"}}
        phone = "/api/v1/streams/phone/whip"
        assert service.http.post(phone, **offer).status_code == 404
        write(service, streams={"hall": SCENES["hall"], "yard": streams["yard"],
              "phone": {"source": "whip:"}}, queries={"look": LOOK})  # fmt: skip
        assert reload(service)["needs_restart"] == []
        until(lambda: service.state("phone") == "offline", "phone waits for its publisher")
        assert service.http.post(phone, **offer).status_code == 400
        write(service, streams={"hall": SCENES["hall"], "yard": streams["yard"]},
              queries={"look": LOOK})  # fmt: skip
        assert reload(service)["streams"]["removed"] == ["phone"]
        assert service.http.post(phone, **offer).status_code == 404

        # Nobody touched hall in all that.
        status = service.get("/api/v1/streams/hall")
        assert (status["state"], status["since"], status["reconnects"]) == (
            "online",
            since["hall"],
            0,
        )
        assert window_start(service, "hall") == began["hall"]
        seen = frames(service, "hall")
        until(lambda: frames(service, "hall") > seen, "its frames go on")
        assert service.log.read_text().count("ingest[hall]: connecting") == 1

        # Faults change nothing and are all told.
        write(service, streams={"hall": {"source": "nowhere://x", "fps": 99}}, sinks=["nix://x"])
        told = reload(service, 422)
        assert len(told["faults"]) == 3
        assert "\n" not in told["error"]
        assert service.state("yard") == "online"
        assert value(service, "stream_sttm_config_is_current") == 0
        assert value(service, 'stream_sttm_config_reloads_total{result="refused"}') == 1
        service.config.write_text("streams: [")
        assert "not valid YAML" in reload(service, 422)["error"]

        # What needs a restart is named, and the rest is taken over.
        first |= {"queries": {}, "model": "some/other", "log_level": "debug"}
        first["answering"] = {"max_question_chars": 20, "max_new_tokens": 1}
        first["http"]["port"] = 1
        service.config.write_text(yaml.safe_dump(first))
        told = reload(service)
        assert sorted(told["needs_restart"]) == ["http.port", "model"]
        assert (told["log_level"], told["answering"]) == (True, True)
        assert "at most 20 are taken" in service.ask("yard", "what is there in view?").text
        answer = service.ask("yard", "what is there?")
        assert (answer.status_code, answer.json()["tokens"]["answer"]) == (200, 1)
        assert told["queries"]["removed"] == ["look"]
        assert value(service, "stream_sttm_config_is_current") == 1
        assert service.stop() == 0
        assert "Traceback" not in service.log.read_text()


@pytest.mark.timeout(240)
def test_the_file_and_sighup_are_followed_and_switches_outlive_a_restart(tmp_path: Path) -> None:
    quick = {"streams": SCENES, "queries": {"look": LOOK}, "watch_file": 0.05}
    with Service(tmp_path, **quick) as service:
        until(lambda: service.state("yard") == "online", "yard is online")
        window_start(service, "hall")  # it remembers something
        write(service, queries={"look": LOOK, "more": {**LOOK, "every": None}})
        until(lambda: len(service.get("/api/v1/queries")["queries"]) == 2, "the file is followed")

        # Asked at once, by name; refused in one line.
        reply = service.http.post("/api/v1/queries/more/trigger")
        assert (reply.status_code, reply.json()["streams"]) == (202, ["hall"])
        until(lambda: service.get("/api/v1/answers?query=more")["answers"], "it is answered")
        for path, body, status in (
            ("queries/moer/trigger", {}, 404),
            ("queries/more/trigger", {"stream": "nowhere"}, 404),
            ("queries/more/trigger", {"stream": "yard"}, 422),
            ("queries/more/trigger", {"strem": "hall"}, 422),
            ("queries/more/trigger", [], 422),
            ("streams/nowhere/enabled", {"enabled": True}, 404),
            ("queries/nowhere/enabled", {"enabled": True}, 404),
            ("queries/more/enabled", {"enabled": "perhaps"}, 422),
            ("queries/more/enabled", {}, 422),
        ):
            reply = service.http.post(f"/api/v1/{path}", json=body)
            assert reply.status_code == status, (path, reply.text)
            assert "\n" not in reply.json()["error"]

        # Switched off: the reader ends and says so, others go on, and so it stays over a restart.
        for kind, name in (("streams", "yard"), ("queries", "more")):
            assert service.http.put(
                f"/api/v1/{kind}/{name}/enabled", json={"enabled": False}
            ).is_success
        assert service.state("yard") == "disabled"
        assert service.ask("yard", "hi").status_code == 503
        assert service.http.post("/api/v1/queries/more/trigger").status_code == 409
        write(service, queries={"look": {**LOOK, "on_event": []}, "more": {**LOOK, "every": None}})
        service.stop(signal.SIGTERM)
    with Service(tmp_path, **(quick | {"queries": {"look": {**LOOK, "on_event": []}, "more": LOOK}}),
                 ) as service:  # fmt: skip
        assert service.state("yard") == "disabled"
        assert service.http.post("/api/v1/queries/look/trigger").status_code == 409
        shown = {
            each["name"]: each["asked_of"] for each in service.get("/api/v1/queries")["queries"]
        }
        assert shown == {"look": ["hall"], "more": []}
        assert service.http.put("/api/v1/streams/yard/enabled", json={"enabled": True}).is_success
        until(lambda: service.state("yard") == "online", "yard is watched again")
        seen = value(service, 'stream_sttm_config_reloads_total{result="unchanged"}')
        assert service.process is not None
        service.process.send_signal(signal.SIGHUP)
        series = 'stream_sttm_config_reloads_total{result="unchanged"}'
        until(lambda: value(service, series) > seen, "SIGHUP has it read")
        assert service.stop() == 0
        assert "Traceback" not in service.log.read_text()


@asynccontextmanager
async def following(path: Path) -> AsyncIterator[list[str]]:
    """The contents of `path` each time it is found to be read anew."""
    taken: list[str] = []

    async def take() -> None:
        taken.append(await asyncio.to_thread(path.read_text))
        if "bad" in taken[-1]:
            raise ConfigError("a fault")

    task = asyncio.create_task(ConfigFile(path, Settings).follow(take, every=0.01))
    try:
        yield taken
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_file_is_read_anew_for_each_change_but_not_while_it_is_away(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("one")
    async with following(path) as taken:
        path.write_text("two two")
        await soon(lambda: taken == ["two two"])
        path.unlink()
        path.write_text("bad")  # an error is no end
        await soon(lambda: taken[-1] == "bad")
        (tmp_path / "new").write_text("four")
        (tmp_path / "new").replace(path)
        await soon(lambda: taken[-1] == "four")
