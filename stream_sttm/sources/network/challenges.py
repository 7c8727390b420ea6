"""What a server asks a login for, and whether those who log in here can answer it.

FFmpeg logs in to RTSP, httpx to HTTP. Where neither a name nor a password is wrong, but the kind of login is not known,
the line must say so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

FFMPEG = ("MD5", "MD5-sess")  # Digest algorithms, spelt so (libavformat/httpauth.c)
HTTPX = ("MD5", "MD5-SESS", "SHA", "SHA-SESS", "SHA-256", "SHA-256-SESS", "SHA-512", "SHA-512-SESS")
_PARAMETER = re.compile(r"""(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))""")


def obstacle(challenges: Sequence[str], known: Sequence[str]) -> str | None:
    """Return why no login can answer the `WWW-Authenticate` challenges. None where one can, or there is none.

    `known` are the Digest algorithms. FFmpeg goes by the last Digest challenge, httpx by the first.
    """
    schemes = [one.strip().partition(" ")[0].rstrip(",").lower() for one in challenges]
    digests = [one for one, scheme in zip(challenges, schemes, strict=True) if scheme == "digest"]
    if digests:
        return _digest_obstacle(digests[-1 if known is FFMPEG else 0], known)
    if not schemes or "basic" in schemes:
        return None
    named = ", ".join(scheme.title()[:20] for scheme in schemes[:4])
    return f"it asks for a login by {_plain(named)}; Basic and Digest are known here"


def _digest_obstacle(challenge: str, known: Sequence[str]) -> str | None:
    found = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(challenge)}
    algorithm = found.get("algorithm", "MD5")
    spelt = algorithm if known is FFMPEG else algorithm.upper()
    if spelt not in known:
        can = ", ".join(one for one in known if "ess" not in one.lower())
        return (
            f"it asks for Digest with algorithm {_plain(algorithm)[:30]}, which can't be done here ({can} can):"
            " let the camera take another, the password may be right"
        )
    protections = [one.strip().lower() for one in found.get("qop", "auth").split(",")]
    if "auth" not in protections:
        return f"it asks for Digest with qop={_plain(found['qop'])[:30]}, which can't be done here (auth can)"
    return None


def _plain(text: str) -> str:
    return "".join(char for char in text if char.isprintable())
