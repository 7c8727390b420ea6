"""The bundled model in front of real cameras: said wherever people look, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_sttm.config.settings import Settings
from tests.support.service import Service
from workers.cli import main
from workers.service import LocalService

REAL = {"door": {"source": "rtsp://127.0.0.1:9/door"}}
DRAWN = {"hall": {"source": "scene://hall"}}


@pytest.mark.parametrize(
    ("model", "streams", "named"),
    [
        ("demo", REAL, "about door mean nothing"),
        ("demo", REAL | DRAWN, "about door mean nothing"),
        ("demo", {"a": {"source": ["scene://1", "whep://127.0.0.1/x"]}}, "about a mean nothing"),
        ("demo", {f"cam{n}": REAL["door"] for n in range(5)}, "cam0, cam1, cam2 and 2 more mean"),
        ("demo", DRAWN, None),
        ("demo", {}, None),
        ("some/model", REAL, None),
    ],
)
def test_it_names_the_streams_whose_answers_mean_nothing(
    model: str, streams: dict[str, object], named: str | None
) -> None:
    note = Settings.model_validate({"model": model, "streams": streams}).model_note
    assert (note is None) == (named is None)
    assert named is None or named in str(note)


def test_check_warns_and_calls_the_file_fine_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("streams: {door: {source: 'rtsp://127.0.0.1:9/door'}}\n")
    assert main(["check", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "fine: 1 streams" in out
    assert err.startswith(f"{path}: warning: model: the bundled model knows only drawn shapes")


def test_the_service_says_so_in_its_log_and_to_the_page(tmp_path: Path) -> None:
    with Service(tmp_path, streams=REAL) as service:
        assert "about door mean nothing" in service.get("/api/v1/streams")["model_note"]
        assert service.log.read_text().count("the bundled model knows only drawn shapes") == 1
        assert 'id="model-note"' in service.http.get("/").text


def test_the_demo_whose_camera_is_drawn_says_nothing() -> None:
    settings = Settings.model_validate({"streams": REAL})
    assert LocalService(settings, is_drawn=True).model_note is None
    assert LocalService(settings).model_note is not None
