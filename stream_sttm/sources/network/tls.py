"""The certificates to trust: one store for everything that speaks TLS to a camera.

It is the file that SSL_CERT_FILE names, else the system's, else the one of `certifi`.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi

_UNTRUSTED = (
    "its certificate is not trusted ({}): name its authority in SSL_CERT_FILE, or, where anybody may pose as this"
    " camera, write #verify=false behind the URL"
)
_SYSTEM = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def authorities() -> str:
    """Return the path of the file with the certificates of all trusted authorities."""
    named = os.environ.get("SSL_CERT_FILE")
    if named:
        return named
    found = ssl.get_default_verify_paths().cafile
    return next(
        (path for path in (found, *_SYSTEM) if path and Path(path).exists()), certifi.where()
    )


def context(*, verify: bool, believed: str = "") -> ssl.SSLContext:
    """For a connection as a client; without `verify` any certificate will do. Raises OSError.

    `believed` is what `authorities` has said elsewhere, for a process that may have another environment.
    """
    made = ssl.create_default_context(cafile=(believed or authorities()) if verify else None)
    if not verify:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made


def ffmpeg(host: str, *, verify: bool) -> dict[str, str]:
    """Return the same as options for FFmpeg."""
    if not verify:
        return {"tls_verify": "0"}
    return {"tls_verify": "1", "ca_file": authorities(), "verifyhost": host}


def explained(error: BaseException) -> str | None:
    """Return what is wrong with a certificate, None where a connection failed for another reason."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _UNTRUSTED.format(cause.verify_message)
        cause = cause.__cause__ or cause.__context__
    return None
