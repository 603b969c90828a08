"""Downloading one file, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from dfqbench.api.errors import DfqError, UsageError

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, bytes so far, and bytes in all where the server says."""

_CHUNK = 2**18
_TIMEOUT = 30.0
"""Seconds without an answer."""


def mirrored(url: str, mirror: str | None) -> str:
    """Replaces scheme and host of a URL by those of a mirror, with the mirror's path in front.

    Raises:
        UsageError: the mirror is not an http or https URL.
    """
    if mirror is None:
        return url
    host = urlsplit(mirror)
    if host.scheme not in ("http", "https") or not host.netloc:
        raise UsageError(f"'{mirror}' is not the URL of a mirror", "write http://host:port or https://host")
    path = urlsplit(url)
    return urlunsplit((host.scheme, host.netloc, host.path.rstrip("/") + path.path, path.query, ""))


def download(
    url: str, path: Path, *, algorithm: str = "sha256", digest: str | None = None, progress: Progress | None = None
) -> None:
    """Downloads a file.

    Args:
        url: http or https.
        path: where to write it; an incomplete file is removed.
        algorithm: hash function of `digest`.
        digest: what the file's hash must start with, or None where none is published.
        progress: told of every chunk.

    Raises:
        UsageError: the server cannot be reached, or does not have the file.
        DfqError: it breaks off, or the file has another hash.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"'{url}' is not an http or https URL", "correct the mirror")
    try:
        hashed, received, total = _receive(url, path, algorithm, progress)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    again = "try again, or use --mirror"
    if total is not None and received != total:
        path.unlink()
        raise DfqError(f"the download of {url} broke off after {received} of {total} bytes", again)
    if digest is not None and not hashed.startswith(digest.lower()):
        path.unlink()
        raise DfqError(f"{url} has {algorithm} {hashed[:12]}..., not {digest[:12]}...: it is corrupt", again)


def _receive(url: str, path: Path, algorithm: str, progress: Progress | None) -> tuple[str, int, int | None]:
    state = hashlib.new(algorithm, usedforsecurity=False)
    received = 0
    request = urllib.request.Request(url, headers={"User-Agent": "dfqbench"})  # noqa: S310 - the scheme was checked
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, path.open("wb") as file:  # noqa: S310
            length = response.headers.get("Content-Length")
            total = int(length) if length is not None else None
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                state.update(chunk)
                received += len(chunk)
                if progress is not None:
                    progress(path.name, received, total)
    except urllib.error.HTTPError as error:
        with error:
            raise UsageError(
                f"{url}: the server answers {error.code} {error.reason}", "check the name or the mirror"
            ) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(f"cannot download {url}: {reason}", "check the network, or use --mirror") from error
    return state.hexdigest(), received, total
