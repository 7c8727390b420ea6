"""The stillness bench: what it counts, and one small run of each half."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import still
from bench.arms import ground
from bench.exam import DrawnStream
from stream_sttm.config.settings import MemorySettings
from stream_sttm.models import load_model


def test_a_film_and_still_scenes_are_counted_for_every_limit(
    scene_video: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(still, "STILL_SECONDS", 12)
    monkeypatch.setattr(still, "STILL_SIDE", 96)
    words = ["--worlds", "0", "--max-still", "3,30", "--video", str(scene_video)]
    assert still.main(words) == 0
    spared = json.loads(capsys.readouterr().out.splitlines()[-1])["spared"]
    assert set(spared) == {
        "still, drawn grain and light",
        "still, noise and flicker",
        "still, noise, through H.264",
        "scene.mp4",
    }
    for name, shares in spared.items():
        if name.startswith("still"):
            assert shares["still_3"] == pytest.approx(2 / 3, abs=0.1)
            assert shares["regions_30"] == pytest.approx(11 / 12, abs=0.1)


def test_a_world_is_watched_by_every_arm_and_only_the_gated_are_spared_anything() -> None:
    model = load_model("demo")
    floor = ground(model, 2.0, (96, 96), 32.0)
    memory = MemorySettings(window_tokens=floor.frames * floor.cells, horizon=floor.horizon)
    stream = DrawnStream(5, 100.0, 2.0, 12.0, 11.0, 4.0, 2, 96)
    arms = {
        still.NONE: still.Gated(0.0, regions=False),
        "still_0": still.Gated(0.0, regions=False),
        "still_5": still.Gated(5.0, regions=False),
        "regions_5": still.Gated(5.0, regions=True),
    }
    watched = still._watch(model, still.Exam(stream, memory, arms))
    none, zero, gated, regions = watched.costs.values()
    assert none.windows == regions.windows == stream.windows == 16
    assert none.spared == zero.spared == none.reused == zero.reused == 0
    assert 0 < regions.spared < gated.spared  # after parts, all is encoded once more
    assert regions.encoded < gated.encoded <= none.encoded == 16 * 64
    assert regions.encoded + regions.reused == 16 * 64
    by_arm = {arm: [s for s in watched.sheets if s.arm == arm] for arm in arms}
    assert {len(sheets) for sheets in by_arm.values()} == {2}
    plain = [replace(s, arm="", seconds=0.0) for s in by_arm[still.NONE]]
    assert plain == [replace(s, arm="", seconds=0.0) for s in by_arm["still_0"]]


def test_a_film_that_is_none_is_one_line_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(still, "STILL_SECONDS", 4)
    monkeypatch.setattr(still, "STILL_SIDE", 48)
    (tmp_path / "notes.mp4").write_text("no video")
    assert still.main(["--worlds", "0", "--video", str(tmp_path / "notes.mp4")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("bench.still: ")
