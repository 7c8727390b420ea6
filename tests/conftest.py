"""Fixtures that several test modules share."""

from tests.rtsp_server import rtsp_camera, scene_video  # noqa: F401 - fixtures are found by name
