"""A service that starts on what an earlier version wrote: its configuration, database, outbox and memory."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.mosquitto import MakeBroker
from tests.support.service import Service, until

VERSIONS = sorted(
    path for path in (Path(__file__).parents[1] / "data" / "versions").iterdir() if path.is_dir()
)


@pytest.mark.server
@pytest.mark.parametrize("version", VERSIONS, ids=lambda path: path.name)
def test_everything_an_earlier_version_kept_is_there_after_the_change(
    tmp_path: Path, version: Path, make_broker: MakeBroker
) -> None:
    """Answers, events, switches, added queries, what waited for the broker, and the memory."""
    expected: dict[str, Any] = json.loads((version / "expected.json").read_text())
    for name in ("answers.db", "answers-outbox.db"):
        shutil.copy(version / name, tmp_path / name)
    shutil.copytree(version / "state", tmp_path / "state")
    broker = make_broker()
    broker.start()
    with sqlite3.connect(
        tmp_path / "answers-outbox.db"
    ) as outbox:  # the broker has another port now
        outbox.execute("UPDATE waiting SET sink = ?", (f"127.0.0.1:{broker.port}/old",))
    outbox.close()
    text = (version / "config.yaml").read_text()
    for name, value in (
        ("MODEL", version / "model"),
        ("FOLDER", tmp_path),
        ("PORT", broker.port),
    ):
        text = text.replace(f"${{{name}}}", str(value))
    config = yaml.safe_load(text)
    config["state"]["max_age"] = 1e9  # the files are as old as the change
    config["memory"]["recall"]["max_age"] = 1e9
    config["outbox"] = {"max_age": 1e9}
    before = time.time()
    with broker.reader("old/#") as reader, Service(tmp_path, **config) as service:
        kept = service.get(f"/api/v1/answers?limit=1000&until={before}")["answers"]
        assert len(kept) == expected["rows"]["answers"]
        events = service.get("/api/v1/events/history?limit=1000")["events"]
        old = [event for event in events if event["started_at"] < before]
        assert len(old) == expected["rows"]["events"]
        assert sum(event["snapshot"] is not None for event in old) == expected["rows"]["snapshots"]
        queries = {query["name"]: query for query in service.get("/api/v1/queries")["queries"]}
        assert not queries["colour"]["enabled"]
        assert queries["added"]["added"]
        assert "stream cam: its memory" in service.log.read_text()
        assert f"its past is back, {expected['past_windows']} windows" in service.log.read_text()
        waited = expected["rows"]["waiting"]

        def delivered() -> int:
            topics = ("/answer", "old/events")
            told = [one for one in reader.messages() if one["topic"].endswith(topics)]
            bodies = [json.loads(one["payload"]) for one in told]
            return sum(body.get("answered_at", body.get("updated_at")) < before for body in bodies)

        until(lambda: delivered() >= waited, f"{waited} that waited for the broker are delivered")
