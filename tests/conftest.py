"""Fixtures that more than one test module needs."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from stream_sttm.engine import attention
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from tests.support import tiny_models
from tests.support.mosquitto import broker, make_broker  # noqa: F401 - fixtures are found by name
from tests.support.postgres import postgres  # noqa: F401
from tests.support.rtsp_server import rtsp_camera, scene_video  # noqa: F401

torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where real servers are required, as in CI, a test skipped for want of one has failed."""
    report = yield
    is_required = bool(os.environ.get("STREAM_STTM_REQUIRE_SERVERS"))
    if report.skipped and is_required and item.get_closest_marker("server"):
        report.outcome = "failed"
        report.longrepr = f"a real server is required here: {report.longrepr}"
    return report


@pytest.fixture(scope="session", params=sorted(tiny_models.FAMILIES))
def tiny_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random checkpoint, one per family."""
    return tiny_models.FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> VideoLLM:
    """The same, loaded and ready for our layer loop."""
    attention.register()
    model = load_model(str(tiny_folder))
    model.use_attention(attention.NAME)
    return model
