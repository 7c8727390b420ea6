"""What the interface says of itself in OpenAPI, held against it by schemathesis: no failure of ours, nothing unsaid."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service import Service

pytest.importorskip("schemathesis")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ENDLESS = "/api/v1/events"  # a stream without end
SCENE = {"hall": {"source": "scene://hall?seed=1", "fps": 1, "stall_after": 120}}
NEW = ("/api/v1/streams/test", "/api/v1/config", "/api/v1/answers/export")
LOOK = {"look": {"streams": ["hall"], "ask": "how many objects are there?", "every": 5}}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_route_answers_as_its_schema_says(tmp_path: Path) -> None:
    with Service(tmp_path, streams=SCENE, queries=LOOK, watch_file=None) as service:
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run"),
                f"{service.http.base_url}/openapi.json",
                *("--checks", CHECKS, "--exclude-path", ENDLESS),
                *("--phases", "examples,coverage,fuzzing", "--max-examples", "5"),
                *("--seed", "1", "--generation-database", "none", "--no-color"),
                *("--request-timeout", "30", "--workers", "1"),
            ],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
        assert service.get("/v1/health/live") == {"status": "live"}
        assert "Traceback" not in service.log.read_text()
        assert set(NEW) <= set(service.get("/openapi.json")["paths"])
