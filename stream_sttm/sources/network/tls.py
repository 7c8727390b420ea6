"""Certificate verification: one trust store for everything that speaks TLS to a camera.

The store is the file that the environment names in SSL_CERT_FILE, else the system's, else that of `certifi`.
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
    """Return the path of the file with all trusted certificate authorities."""
    named = os.environ.get("SSL_CERT_FILE")
    if named:
        return named
    found = ssl.get_default_verify_paths().cafile
    return next(
        (path for path in (found, *_SYSTEM) if path and Path(path).exists()), certifi.where()
    )


def context(*, verify: bool, believed: str = "") -> ssl.SSLContext:
    """Return the context of a client connection. Without `verify` any certificate will do. Raises OSError.

    `believed` is the result of `authorities` elsewhere, for a process that may have another environment.
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
    """Return what is wrong with a certificate. None where that is not why a connection failed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _UNTRUSTED.format(cause.verify_message)
        cause = cause.__cause__ or cause.__context__
    return None
