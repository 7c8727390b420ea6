"""A real browser that publishes its fake camera by WHIP, as a user's page would."""

import asyncio
import shutil
import tempfile
from contextlib import asynccontextmanager

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)  # fmt: skip
PAGE = """<!doctype html><title>publish</title><script>
(async () => {
  const media = await navigator.mediaDevices.getUserMedia({video: {width: 320, height: 240}, audio: true});
  const peer = new RTCPeerConnection();
  for (const track of media.getTracks()) peer.addTrack(track, media);
  await peer.setLocalDescription();
  const headers = {"Content-Type": "application/sdp", "Authorization": "Bearer TOKEN"};
  const reply = await fetch("ENDPOINT", {method: "POST", headers, body: peer.localDescription.sdp});
  document.title = `answered ${reply.status}`;
  await peer.setRemoteDescription({type: "answer", sdp: await reply.text()});
})();
</script>"""


@asynccontextmanager
async def browsing(url):
    """Run a headless browser with a fake camera and microphone at `url`, until the end of the context."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            f"--user-data-dir={folder}",
            url,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            await process.wait()
