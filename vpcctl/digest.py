"""SHA-256 of short data without OpenSSL: loading OpenSSL takes longer than most hashes of a command."""

from __future__ import annotations

# For longer data OpenSSL is several times as fast.
SHORT = 1 << 20

try:
    from _sha2 import sha256 as _own  # type: ignore[import-not-found] # Python 3.12 and later
except ImportError:
    try:
        from _sha256 import sha256 as _own  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256 as _own


def sha256(data: bytes) -> bytes:
    """The digest of `data`."""
    if len(data) <= SHORT:
        digest: bytes = _own(data).digest()
        return digest
    import hashlib

    return hashlib.sha256(data).digest()
