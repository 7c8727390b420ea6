"""What a broker keeps of a running service is true: through a reload, and when a question is asked no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mosquitto import Mosquitto
from tests.support.service import Service, until

pytestmark = pytest.mark.server


def test_a_reload_does_not_tell_a_connected_broker_as_lost(
    broker: Mosquitto, tmp_path: Path
) -> None:
    sinks = [f"{broker.url}/a", f"{broker.url}/b"]
    with Service(tmp_path, model="demo", streams={}, sinks=sinks, watch_file=None) as service:

        def connected() -> list[str]:
            told = service.http.get("/metrics").text.splitlines()
            return [line.split()[-1] for line in told if "mqtt_connected{" in line]

        until(lambda: connected() == ["1.0", "1.0"], "both are connected")
        service.http.post("/api/v1/config/reload").raise_for_status()
        assert connected() == ["1.0", "1.0"]
        service.config.write_text(service.config.read_text().replace("/test/a", "/test/a?node=n"))
        service.http.post("/api/v1/config/reload").raise_for_status()
        until(lambda: connected() == ["1.0", "1.0"], "the same broker and prefix, otherwise")
        text = service.config.read_text().replace(f"- {broker.url}/b\n", "")
        service.config.write_text(text)
        service.http.post("/api/v1/config/reload").raise_for_status()
        assert connected() == ["1.0"]
