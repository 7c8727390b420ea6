"""Fixtures that more than one test module needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stream_sttm.engine import attention
from stream_sttm.models import load_model
from stream_sttm.models.family import VideoLLM
from tests import tiny_models

torch.set_num_threads(1)


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
