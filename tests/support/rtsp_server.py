"""A real RTSP camera for tests: GStreamer's server in a process of its own, a video in a loop, in real time.

The first half is for tests and the bench (`RtspCamera`, `write_video`); run as a script by the system's Python, which
has GStreamer's bindings, the file is the server itself. A looped file starts anew with a keyframe while the timestamps
go on; of several files each follows the other in the same stream. Every mount is a camera of its own.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

SYSTEM_PYTHON = "/usr/bin/python3"
_PROBE = (
    "import gi; gi.require_version('GstRtspServer', '1.0'); gi.require_version('GstApp', '1.0');"
    "from gi.repository import Gst, GstApp, GstRtspServer; Gst.init(None);"
    "assert all(Gst.ElementFactory.find(n) for n in ('qtdemux', 'h264parse', 'rtph264pay', 'appsrc'))"
)


def why_missing():
    """Why GStreamer's RTSP server can't be run here, or None."""
    if shutil.which(SYSTEM_PYTHON) is None:
        return f"no {SYSTEM_PYTHON}"
    probe = subprocess.run([SYSTEM_PYTHON, "-c", _PROBE], capture_output=True, timeout=60)
    if probe.returncode:
        return "GStreamer's RTSP server is not installed (gir1.2-gst-rtsp-server-1.0, python3-gi)"
    return None


def write_video(
    path,
    render,
    *,
    seconds=4.0,
    fps=10,
    size=240,
    codec="libx264",
    keyframe_every=10,
    **options,
):
    """Write `render(t, size)` as an MP4 (or whatever the suffix says), constant rate; `options` are the encoder's."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = render(0.0, size).shape[:2]
        stream.pix_fmt = "yuv420p" if codec != "mjpeg" else "yuvj420p"
        stream.codec_context.gop_size = keyframe_every
        stream.codec_context.thread_count = 1
        if codec in ("libx264", "libx265"):
            stream.options = {"preset": "ultrafast", "tune": "zerolatency", "crf": "20"} | options
        for index in range(round(seconds * fps)):
            image = render(index / fps, size)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


class RtspCamera:
    """The server as a process that can be started, stopped, killed, frozen and revived on the same port."""

    def __init__(
        self, video, *, user=None, password=None, port=0, certificate=None, mounts=1, options=()
    ):
        self.videos = [video] if isinstance(video, (str, os.PathLike)) else list(video)
        self.user, self.password, self.mounts, self.options = user, password, mounts, options
        self.certificate = certificate  # a PEM file with its key; with one, it speaks rtsps
        self.port = port or _free_port()
        self.process = None

    @property
    def address(self):
        """Host, port and path, for a URL with or without credentials."""
        return f"127.0.0.1:{self.port}/live"

    @property
    def url(self):
        """The address as anybody may see it."""
        return f"{'rtsps' if self.certificate else 'rtsp'}://{self.address}"

    @property
    def urls(self):
        """The addresses of all mounts."""
        return [self.url + (str(index) if index else "") for index in range(self.mounts)]

    def start(self):
        """Run the server and return once it listens."""
        command = [SYSTEM_PYTHON, __file__, *map(str, self.videos), "--port", str(self.port)]
        command += ["--mounts", str(self.mounts), *self.options]
        if self.user:
            command += ["--user", self.user, "--password", self.password]
        if self.certificate:
            command += ["--certificate", str(self.certificate)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if line.strip() != "listening":
            self.stop()
            raise RuntimeError(f"the RTSP server did not start: {line!r}")
        return self

    def stop(self):
        """End the server, whatever state it is in."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process.stdout.close()
            self.process = None

    kill = stop

    def freeze(self):
        """Half-open: connections stay up, nothing is answered or sent any more."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        """Undo `freeze`."""
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _fixtures():
    """Return the pytest fixtures. The system's Python, which runs the server, has no pytest."""
    import pytest

    from stream_sttm.sources.scene import Scene

    @pytest.fixture(scope="session")
    def scene_video(tmp_path_factory):
        """Return a four-second H.264 file of Scene(7), 240x240, 10 frames a second, a keyframe each second."""
        return write_video(tmp_path_factory.mktemp("video") / "scene.mp4", Scene(7).render)

    @pytest.fixture
    def rtsp_camera(scene_video):
        """Yield a running RTSP server that loops `scene_video`. Its test must be marked `server`."""
        if (why := why_missing()) is not None:
            pytest.skip(why)
        with RtspCamera(scene_video) as camera:
            yield camera

    return scene_video, rtsp_camera


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _units(gst, video, codec):
    """Return the access units (bytes, Annex B) of an MP4 file with whether each is a keyframe, and its rate.

    Keyframes come with their parameter sets.
    """
    pipeline = gst.parse_launch(
        f'filesrc location="{video}" ! qtdemux ! {codec}parse config-interval=-1 '
        f"! video/x-{codec},stream-format=byte-stream,alignment=au ! appsink name=out sync=false"
    )
    out = pipeline.get_by_name("out")
    pipeline.set_state(gst.State.PLAYING)
    units, rate = [], 10.0
    while (sample := out.emit("pull-sample")) is not None:
        buffer = sample.get_buffer()
        is_key = not buffer.has_flags(gst.BufferFlags.DELTA_UNIT)
        units.append((buffer.extract_dup(0, buffer.get_size()), is_key))
        known, above, below = sample.get_caps().get_structure(0).get_fraction("framerate")
        rate = above / below if known and above else rate
    pipeline.set_state(gst.State.NULL)
    if not units:
        sys.exit(f"no video in {video}")
    return units, rate


_AUDIO = "( audiotestsrc is-live=true ! mulawenc ! rtppcmupay name=pay0 pt=0 )"


def _serve(options):
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    gi.require_version("GstApp", "1.0")
    from gi.repository import Gio, GLib, Gst, GstApp, GstRtspServer  # noqa: F401 - GstApp types appsrc

    Gst.init(None)
    codec = options.codec
    units, rate = [], 10.0
    for video in options.videos:
        more, rate = _units(Gst, video, codec)
        units += more
    # A stream that has lost its keyframes: the first viewer sees one, later ones never.
    rest = [unit for unit in units if not unit[1]] if options.one_keyframe else units

    def configure(_factory, media):
        source = media.get_element().get_by_name("source")
        started, sent = time.monotonic(), 0

        def push():
            nonlocal sent
            while sent / rate <= time.monotonic() - started:
                shown = units if sent < len(units) - len(rest) else rest
                buffer = Gst.Buffer.new_wrapped(shown[sent % len(shown)][0])
                buffer.pts = buffer.dts = int(sent / rate * Gst.SECOND)
                buffer.duration = int(Gst.SECOND / rate)
                if source.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                    return False
                sent += 1
            return True

        push()
        GLib.timeout_add(10 if options.mounts == 1 else 30, push)

    server = GstRtspServer.RTSPServer(address="127.0.0.1", service=str(options.port))
    auth = GstRtspServer.RTSPAuth()
    for index in range(options.mounts):
        factory = _factory(GstRtspServer, options, configure)
        if options.user:
            _protect(GstRtspServer, auth, factory, options)
        server.get_mount_points().add_factory(f"/live{index or ''}", factory)
    if options.certificate:
        auth.set_tls_certificate(Gio.TlsCertificate.new_from_file(options.certificate))
    if options.user or options.certificate:
        server.set_auth(auth)
    server.attach(None)
    print("listening", flush=True)  # noqa: T201 - the parent waits for it
    parent = os.getppid()
    GLib.timeout_add(500, lambda: os.getppid() == parent or sys.exit(0))
    GLib.MainLoop().run()


def _factory(rtsp, options, configure):
    """Return the media factory of one camera's stream."""
    factory, codec = rtsp.RTSPMediaFactory(), options.codec
    factory.set_launch(
        _AUDIO
        if options.audio_only
        else f"( appsrc name=source is-live=true format=time caps=video/x-{codec},stream-format=byte-stream,"
        f"alignment=au ! {codec}parse config-interval=-1 ! rtp{codec}pay name=pay0 pt=96 )"
    )
    factory.set_shared(True)
    if not options.audio_only:
        factory.connect("media-configure", configure)
    return factory


def _protect(rtsp, auth, factory, options):
    """Let in only who knows user and password."""
    token = rtsp.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(rtsp.RTSPAuth.make_basic(options.user, options.password), token)
    permissions = rtsp.RTSPPermissions()
    permissions.add_role("viewer")
    for right in ("media.factory.access", "media.factory.construct"):
        permissions.add_permission_for_role("viewer", right, True)
    factory.set_permissions(permissions)


if __name__ != "__main__":
    scene_video, rtsp_camera = _fixtures()
else:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("videos", nargs="+")
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--mounts", type=int, default=1)
    arguments.add_argument("--codec", default="h264", choices=("h264", "h265"))
    arguments.add_argument("--one-keyframe", action="store_true")
    arguments.add_argument("--audio-only", action="store_true")
    arguments.add_argument("--user")
    arguments.add_argument("--password")
    arguments.add_argument("--certificate")
    _serve(arguments.parse_args())
