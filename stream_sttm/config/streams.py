"""The settings of a stream, and the rules for what its source may reach.

Checks spellings only. What a source and a rule mean is known in sources/.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from stream_sttm import urls
from stream_sttm.config import source_url
from stream_sttm.errors import ConfigError

MAX_CANDIDATES = 8  # URLs of one camera
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})|\*")


def _source(value: object) -> object:
    """Check a stream's source: one URL or several, in any known spelling."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise ValueError("must be a URL, or a list of URLs of the same camera")
    if not 1 <= len(given) <= MAX_CANDIDATES:
        raise ValueError(f"a list of URLs must hold 1 to {MAX_CANDIDATES}")
    try:
        schemes = [urls.split(source_url.plain(one)).scheme for one in given]
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if "whip" in schemes and len(given) > 1:
        raise ValueError("whip: waits for its publisher, so it can't stand beside other URLs")
    return value


class Section(BaseModel):
    """A section of the configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )


class StreamSettings(Section):
    """One camera."""

    source: Annotated[str | list[str], BeforeValidator(_source)] = Field(
        description="One URL, or a list from best to last resort: rtsp(s) http(s) rtmp(s) srt whep(s) file v4l2 scene, or whip:",
    )
    enabled: bool = Field(True, description="Whether it is watched; false shows it as disabled.")
    fps: float = Field(2.0, gt=0, le=30, description="Frames per second that are looked at.")
    decode: Literal["auto", "keyframes", "references", "full"] = Field(
        "auto",
        description="What is decoded: auto takes keyframes alone where they come as often as fps asks, else leaves out what no other picture refers to.",
    )
    clip_frames: int = Field(
        2, ge=1, le=64, description="Frames that are encoded and merged together."
    )
    max_side: int = Field(
        640,
        ge=32,
        le=4096,
        description="Longer side of a frame in pixels; larger pictures are scaled down at the source.",
    )
    max_pixels: int = Field(
        36_000_000, ge=1024, description="Most pixels of a camera's own picture; 8K has 33 million."
    )
    max_still: float = Field(
        10.0,
        ge=0,
        le=3600,
        description="Seconds after which a picture is encoded anew as a whole though little or nothing has changed; 0: always.",
    )
    regions: bool = Field(
        True,
        description="Whether meanwhile what has changed is encoded alone, where the model's family can; keeps its vision tower's keys and values.",
    )
    stall_after: float = Field(
        4.0,
        gt=0,
        description="Seconds without a sign of life after which the camera counts as stalled and is reopened.",
    )
    frigate: str | None = Field(
        None, min_length=1, description="Name of the camera in Frigate; null: the stream's own."
    )

    @property
    def candidates(self) -> tuple[str, ...]:
        """The source's URLs in our own spelling, the best first."""
        given = [self.source] if isinstance(self.source, str) else self.source
        return tuple(source_url.plain(one) for one in given)

    @property
    def encodes_regions(self) -> bool:
        """Whether the changed regions of a picture may be encoded alone."""
        return self.regions and self.max_still > 0

    @property
    def is_pushed(self) -> bool:
        """Whether the stream is published to the service (WHIP) instead of fetched."""
        return self.candidates[0].startswith("whip:")


class SourceRules(Section):
    """What the source of a stream may be and reach. By default it may be whatever the configuration file names."""

    schemes: list[str] | None = Field(
        None, description="Schemes a source may have, such as [rtsp, rtsps]; null: every one."
    )
    hosts: list[str] | None = Field(
        None,
        description="Names, *.domains, addresses and networks (10.0.0.0/8) it may reach; null: any.",
    )
    private: bool = Field(
        True,
        description="Whether it may reach loopback, private and link-local addresses that hosts does not name.",
    )
    folders: list[str] | None = Field(
        None, description="Folders, by full path, whose files it may read; null: any."
    )
    http_private: bool = Field(
        False,
        description="Whether streams added over HTTP may reach what this file's own may; else no private address, file or device that hosts, folders and schemes don't name.",
    )
    http_variables: list[str] = Field(
        ["CAMERA_*"],
        description="Environment variables that streams added over HTTP may take by ${NAME}; * stands for any characters.",
    )

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, hosts: list[str] | None) -> list[str] | None:
        for host in hosts or ():
            try:
                ipaddress.ip_network(host, strict=False)
            except ValueError:
                if "/" in host or not _HOST.fullmatch(host):
                    raise ValueError(
                        "each must be a name, a *.domain, an address or a network such as 10.0.0.0/8"
                    ) from None
        return hosts

    @field_validator("folders")
    @classmethod
    def _are_full_paths(cls, folders: list[str] | None) -> list[str] | None:
        if not all(Path(folder).is_absolute() for folder in folders or ()):
            raise ValueError("each must be a full path, such as /srv/recordings")
        return folders
