"""The settings in force with every default, credentials masked.

Pure. The keys that can hold a credential are listed here. Whoever adds such a key adds it here.
"""

from __future__ import annotations

from typing import Any

from stream_sttm import urls
from stream_sttm.config import source_url
from stream_sttm.config.settings import Settings
from stream_sttm.config.streams import StreamSettings
from stream_sttm.errors import ConfigError


def shown(settings: Settings) -> dict[str, Any]:
    """Return all settings as JSON, credentials as ***."""
    tree = settings.model_dump(mode="json")
    tree["streams"] = {name: shown_stream(stream) for name, stream in settings.streams.items()}
    tree["sinks"] = [urls.mask(url) for url in settings.sinks]
    if "://" in settings.store.path:
        tree["store"]["path"] = urls.mask(settings.store.path)
    http = tree["http"]
    http["token"] = None if settings.http.token is None else urls.HIDDEN
    http["tokens"] = [{**token, "hash": urls.HIDDEN} for token in http["tokens"]]
    return tree


def shown_stream(stream: StreamSettings) -> dict[str, Any]:
    """Return a stream's settings as JSON, the credentials of its source as ***."""
    tree = stream.model_dump(mode="json")
    several = isinstance(stream.source, list)
    tree["source"] = [mask(one) for one in stream.source] if several else mask(str(stream.source))
    return tree


def mask(source: str) -> str:
    """Return a source, in any spelling, without its credentials."""
    try:
        return urls.mask(source_url.plain(source))
    except ConfigError:
        return urls.HIDDEN
