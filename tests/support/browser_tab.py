"""A tab of a real browser without a window, driven over its DevTools protocol, and all that it complains of."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

from tests.support.publishing_browser import CHROMIUM
from tests.support.service import until

_LARGEST = 64 * 1024 * 1024  # bytes of a message; a screenshot is one


class Tab:
    """One page; `complaints` are its console's errors, uncaught exceptions and failed requests."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go there."""
        self._send("Page.navigate", url=url)
        until(lambda: self.run("document.readyState === 'complete'"), f"{url} is loaded")

    def run(self, script: str) -> Any:
        """Return the value of an expression, awaited."""
        told = self._send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, (script, told["exceptionDetails"])
        return told["result"].get("value")

    def until(self, script: str, what: str) -> Any:
        """Return the expression's value as soon as it is true; of an element, true."""
        shown = f"((it) => it instanceof Node ? true : it)({script})"
        return until(lambda: self.run(shown), what)

    def press(self, key: str, code: int) -> None:
        """Send a key, as a keyboard does."""
        for kind in ("keyDown", "keyUp"):
            self._send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code
            )

    def write(self, words: str) -> None:
        """Words into what has the focus."""
        self._send("Input.insertText", text=words)

    def look(self, width: int, height: int, scheme: str = "light") -> None:
        """Be so large, and dark or light."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._send("Emulation.setDeviceMetricsOverride", **size)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self._send("Emulation.setEmulatedMedia", features=wanted)

    def shoot(self, path: Path) -> Path:
        """Return a picture of what is in view, as PNG."""
        told = self._send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(told["data"]))
        return path

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            told = json.loads(self._connection.recv(timeout=60))
            if told.get("id") == number:
                assert "error" not in told, (method, told)
                result: dict[str, Any] = told["result"]
                return result
            self._hear(told)

    def _hear(self, told: dict[str, Any]) -> None:
        method, params = told.get("method"), told.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url')}")


@contextmanager
def browser_tab(folder: Path) -> Iterator[Tab]:
    """Yield an empty tab of a browser of its own, whose files are in `folder`."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-dev-shm-usage", "--hide-scrollbars", "--force-prefers-reduced-motion"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        file = folder / "DevToolsActivePort"
        until(lambda: file.exists() and "\n" in file.read_text(), "the browser takes commands")
        address = f"http://127.0.0.1:{file.read_text().splitlines()[0]}/json/list"

        def page() -> str | None:
            found = httpx.get(address, trust_env=False).json()
            return next((x["webSocketDebuggerUrl"] for x in found if x["type"] == "page"), None)

        url = until(page, "the browser has a tab")
        with connect(url, max_size=_LARGEST, proxy=None, compression=None) as connection:
            yield Tab(connection)
    finally:
        process.terminate()
        process.wait(30)
