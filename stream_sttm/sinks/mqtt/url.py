"""Parse an MQTT sink's URL: the broker, the login, the protocol, the prefix and options.

`mqtt://user:password@host:1883/prefix`, or mqtts:// with `?ca=FILE&cert=FILE&key=FILE`. For both `protocol=5`,
`discovery=homeassistant`, `node=NAME`, `snapshots=SECONDS`, `frigate=PREFIX`, `commands=none|ask|all`. Knows nothing of
what is published.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, unquote

from stream_sttm import registry, urls
from stream_sttm.errors import ConfigError

DEFAULT_PREFIX = "stream_sttm"
MAX_PREFIX_CHARS = 200
_DEFAULT_PORT = {"mqtt": 1883, "mqtts": 8883}
_PROTOCOLS = {"311": "3.1.1", "3.1.1": "3.1.1", "5": "5"}
_FILES = ("ca", "cert", "key")
_OPTIONS = [*_FILES, "protocol", "discovery", "node", "snapshots", "frigate", "commands"]
_COMMANDS = ("none", "ask", "all")
_NODE = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A broker and the options of a sink, None where not set.

    `discovery` and `frigate`: prefixes of Home Assistant's and Frigate's topics. `snapshots`: seconds between two.
    `commands`: what is taken from the broker: none, ask (questions alone) or all.
    """

    host: str
    port: int
    prefix: str
    node: str
    protocol: str = "3.1.1"
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    discovery: str | None = None
    snapshots: float | None = None
    frigate: str | None = None
    commands: str = "all"

    @property
    def broker(self) -> str:
        """Host and port, for messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """The sink's unique name: the broker, and the prefix where it is not the default."""
        is_default = self.prefix == DEFAULT_PREFIX
        return self.broker if is_default else f"{self.broker}/{self.prefix}"


def parse(url: str) -> Endpoint:
    """Parse `url`. Raises ConfigError, without the password, where it is invalid."""
    parts = urls.split(url)
    if not parts.hostname:
        raise ConfigError(
            f"{parts.scheme}:// names no host; write {parts.scheme}://HOST:PORT/PREFIX"
        )
    options = _options(parts)
    prefix = _prefix(unquote(parts.path).strip("/") or DEFAULT_PREFIX, "mqtt prefix")
    discovery, frigate = options.get("discovery"), options.get("frigate")
    return Endpoint(
        host=parts.hostname,
        port=parts.port or _DEFAULT_PORT[parts.scheme],
        prefix=prefix,
        node=_node(options.get("node"), prefix),
        protocol=_protocol(options.get("protocol", "311")),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        tls=_tls(options) if parts.scheme == "mqtts" else None,
        discovery=None if discovery is None else _prefix(discovery, "mqtt discovery prefix"),
        snapshots=_seconds(options.get("snapshots")),
        frigate=None if frigate is None else _prefix(frigate, "mqtt frigate prefix"),
        commands=_commands(options.get("commands", "all")),
    )


def _options(parts: SplitResult) -> dict[str, str]:
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    options = dict(pairs)
    for name, value in pairs:
        if name not in _OPTIONS:
            hint = registry.suggest(urls.shown(name), _OPTIONS)
            raise ConfigError(f"an MQTT URL has no option {urls.shown(name)!r}{hint}")
        if not value:
            raise ConfigError(f"mqtt option {name}: has no value")
        if name in _FILES and parts.scheme != "mqtts":
            raise ConfigError(f"mqtt option {name}: belongs to mqtts://")
    if len(options) < len(pairs):
        raise ConfigError("an MQTT URL has an option twice")
    return options


def _prefix(prefix: str, kind: str) -> str:
    if len(prefix) > MAX_PREFIX_CHARS or not prefix.isprintable():
        raise ConfigError(f"{kind}: at most {MAX_PREFIX_CHARS} printable characters")
    if any(char in prefix for char in "+#") or "//" in prefix or prefix.startswith("$"):
        raise ConfigError(f"{kind} {prefix!r}: '+', '#', '//' and a leading '$' are not allowed")
    return prefix.strip("/")


def _node(given: str | None, prefix: str) -> str:
    """Return the name of this service in Home Assistant, made from the prefix where none is given."""
    if given is None:
        return re.sub(r"[^A-Za-z0-9_-]", "_", prefix)[:64]
    if not _NODE.fullmatch(given):
        raise ConfigError("mqtt option node: takes letters, digits, '_' and '-', 64 at most")
    return given


def _protocol(given: str) -> str:
    if given not in _PROTOCOLS:
        raise ConfigError("mqtt option protocol: is 311 (MQTT 3.1.1) or 5")
    return _PROTOCOLS[given]


def _commands(given: str) -> str:
    if given not in _COMMANDS:
        raise ConfigError("mqtt option commands: is none, ask or all")
    return given


def _seconds(given: str | None) -> float | None:
    if given is None:
        return None
    if not re.fullmatch(r"\d{1,5}(\.\d{1,3})?", given) or float(given) < 1:
        raise ConfigError("mqtt option snapshots: is a number of seconds, 1 or more")
    return float(given)


def _tls(options: Mapping[str, str]) -> ssl.SSLContext:
    ca, cert, key = (options.get(name) for name in _FILES)
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"mqtts://: can't read ca={ca}: {_why(error)}") from error
    if key and not cert:
        raise ConfigError("mqtt option key: belongs to cert=FILE")
    if cert:
        try:
            # Without a password callback OpenSSL would ask for one at the terminal.
            context.load_cert_chain(cert, key, password=lambda: b"")
        except (OSError, ssl.SSLError) as error:
            what = f"cert={cert}" + (f" with key={key}" if key else "")
            raise ConfigError(f"mqtts://: can't use {what}: {_why(error)}") from error
    return context


def _why(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not this certificate's"
    if isinstance(error, ssl.SSLError):
        return "not PEM, or the key is encrypted"
    return error.strerror or type(error).__name__
