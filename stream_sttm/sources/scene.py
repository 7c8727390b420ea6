"""scene:// - a drawn scene that never ends, shown in real time as a camera would.

    scene://hall?seed=7&fps=10&size=480

The world is in stream_sttm/scene. It is drawn in a process of its own, as every other video is decoded in one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qsl

from stream_sttm import registry, urls
from stream_sttm.errors import ConfigError
from stream_sttm.scene.world import Scene
from stream_sttm.sources.decoding.process import DecoderProcess
from stream_sttm.sources.decoding.protocol import Request
from stream_sttm.sources.network.opening import Opening
from stream_sttm.types import Frame

__all__ = ["Scene", "SceneSource"]


@dataclass
class SceneSource:
    """A Scene shown in real time, drawn in a process of its own. Scene time 0 is the moment of opening."""

    url: str
    stream: str = "scene"
    fps: float = 2.0
    max_side: int = 640
    is_live: bool = field(default=True, init=False)
    scene: Scene = field(init=False)

    def __post_init__(self) -> None:
        known = {"seed": 0.0, "fps": 10.0, "size": 480.0}
        for key, value in parse_qsl(urls.split(self.url).query, keep_blank_values=True):
            if key not in known:
                hint = registry.suggest(key, list(known))
                raise ConfigError(f"{urls.mask(self.url)}: a scene has no option {key!r}{hint}")
            try:
                known[key] = float(value)
            except ValueError:
                raise ConfigError(
                    f"{urls.mask(self.url)}: {key} must be a number, not {value!r}"
                ) from None
        if not (
            0 < known["fps"] <= 60 and 32 <= known["size"] <= 4096 and 0 <= known["seed"] < 2**32
        ):
            raise ConfigError(
                f"{urls.mask(self.url)}: needs 0 < fps <= 60, 32 <= size <= 4096, 0 <= seed < 2**32"
            )
        self.scene = Scene(int(known["seed"]))
        options = {"seed": self.scene.seed, "fps": known["fps"], "size": int(known["size"])}
        opening = Opening("", "scene", options={key: str(one) for key, one in options.items()})
        self._process = DecoderProcess(
            Request(
                url=self.url,
                opening=opening,
                stream=self.stream,
                fps=self.fps,
                max_side=self.max_side,
                decode="full",
            )
        )

    @property
    def heard_at(self) -> float:
        """When the process last gave a sign of life, monotonic."""
        return self._process.heard_at

    async def __aenter__(self) -> Self:
        try:
            await self._process.open()
        except BaseException:
            await self._process.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._process.close()

    async def frames(self) -> AsyncIterator[Frame]:
        """Yield the frames that are due of the scene's ticks. The newest replaces one that nobody took."""
        while (frame := await self._process.frame()) is not None:
            yield frame
