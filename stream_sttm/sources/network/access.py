"""What a source may reach: scheme, host and file, checked against the rules of the configuration.

A name is resolved first, then each of its addresses is checked. The caller connects to the checked addresses, never to
the name again, so a later DNS answer changes nothing. A file is opened first, and the opened file is checked. This
module knows no protocol: whoever follows a redirect asks again.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Self

from stream_sttm import urls
from stream_sttm.config.streams import SourceRules
from stream_sttm.errors import SourceDenied, SourceUnavailable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
_HOSTLESS = ("file", "v4l2", "scene", "whip")  # schemes that connect to nobody
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Access:
    """The rules for sources. Without arguments everything is allowed. None means any, an empty tuple none."""

    schemes: tuple[str, ...] | None = None
    hosts: tuple[str, ...] | None = None
    private: bool = True
    folders: tuple[str, ...] | None = None

    @classmethod
    def of(cls, rules: SourceRules) -> Self:
        """Return the rules of a configuration, for its own streams."""
        schemes, hosts, folders = (
            None if given is None else tuple(given)
            for given in (rules.schemes, rules.hosts, rules.folders)
        )
        return cls(schemes=schemes, hosts=hosts, private=rules.private, folders=folders)

    def for_strangers(self) -> Self:
        """Return the rules for a stream added over the network: nothing of this site that they don't name."""
        return replace(self, private=False, folders=self.folders or ())

    @property
    def limits_hosts(self) -> bool:
        """Whether there are hosts that may not be reached."""
        return self.hosts is not None or not self.private

    def check(self, url: str) -> None:
        """Raise SourceDenied where the URL alone shows that it may not be used. Looks nothing up."""
        parts, shown = urls.split(url), urls.mask(url)
        if self.schemes is not None and parts.scheme not in self.schemes:
            raise SourceDenied(f"{shown}: {parts.scheme}:// is not among sources.schemes")
        if self.schemes is None and not self.private and parts.scheme == "v4l2":
            raise SourceDenied(f"{shown}: devices are only open to whom sources.schemes names them")
        if parts.scheme in _HOSTLESS or not parts.hostname:
            return
        if (literal := _literal(parts.hostname)) is not None:
            self._require(shown, parts.hostname, [str(literal)])
        elif not self._may_be_allowed(parts.hostname):
            raise SourceDenied(f"{shown}: the host is not among sources.hosts")

    async def resolve(self, url: str, port: int, lookup: Lookup | None = None) -> list[str]:
        """Return the addresses of the URL's host that may be connected to. Raises SourceDenied if there are none.

        Raises SourceUnavailable where the name is not known.
        """
        host = self._host(url)
        try:
            found = await (lookup or _lookup)(host, port)
        except (OSError, UnicodeError) as error:
            raise SourceUnavailable(f"{urls.mask(url)}: the host name is not known") from error
        return self._require(urls.mask(url), host, found)

    def resolve_now(self, url: str, port: int) -> list[str]:
        """Return the same addresses. Blocks, so it is for threads."""
        host = self._host(url)
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise SourceUnavailable(f"{urls.mask(url)}: the host name is not known") from error
        return self._require(urls.mask(url), host, [str(address[0]) for *_, address in found])

    def _host(self, url: str) -> str:
        self.check(url)
        host = urls.split(url).hostname
        if not host:
            raise SourceUnavailable(f"{urls.mask(url)}: the URL names no host")
        return host

    def allows_address(self, host: str, address: str) -> bool:
        """Return whether `address`, which belongs to `host`, may be reached."""
        literal = _literal(address)
        return literal is not None and self._allows(host, literal)

    def open_file(self, url: str, path: Path) -> FileIO:
        """Open and return the file. Raises OSError, and SourceDenied where it really lies in no allowed folder."""
        opened = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            self._require_folder(url, Path(os.readlink(f"/proc/self/fd/{opened.fileno()}")))
        except BaseException:
            opened.close()
            raise
        return opened

    def real_path(self, url: str, path: Path) -> Path:
        """Return the path with every link followed. Raises SourceDenied where it lies in no allowed folder."""
        real = path.resolve()
        self._require_folder(url, real)
        return real

    def _require_folder(self, url: str, real: Path) -> None:
        if self.folders is None:
            return
        if not any(real.is_relative_to(Path(folder).resolve()) for folder in self.folders):
            raise SourceDenied(f"{urls.mask(url)}: lies outside the folders of sources.folders")

    def _require(self, shown: str, host: str, addresses: Sequence[str]) -> list[str]:
        allowed = [one for one in addresses if self.allows_address(host, one)]
        if not allowed:
            raise SourceDenied(
                f"{shown}: the host's address is private or not among sources.hosts; name it there if it is meant"
            )
        return allowed

    def _allows(self, host: str, address: Address) -> bool:
        name = _name(host)
        is_reachable = self.private or _is_public(address)
        if self.hosts is None:
            return is_reachable
        for entry in self.hosts:
            if (network := _network(entry)) is not None:
                if _embedded(address) in network or address in network:
                    return True
            elif entry.startswith("*"):
                if is_reachable and name.endswith(_name(entry[1:])):
                    return True
            elif name == _name(entry):
                return True
        return False

    def _may_be_allowed(self, host: str) -> bool:
        """Return whether any address could make this name allowed."""
        if self.hosts is None:
            return True
        name = _name(host)
        return any(
            _network(entry) is not None
            or (name.endswith(_name(entry[1:])) if entry.startswith("*") else name == _name(entry))
            for entry in self.hosts
        )


EVERYTHING = Access()


async def _lookup(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _name(host: str) -> str:
    return host.lower().removesuffix(".")


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def _embedded(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one embeds, else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


def _is_public(address: Address) -> bool:
    """Return whether it is an ordinary address of the internet."""
    inner = _embedded(address)
    return inner.is_global and not inner.is_multicast
