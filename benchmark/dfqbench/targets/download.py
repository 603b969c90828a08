"""Download one file, from a web server or the Hugging Face Hub, and compare it with its published hash."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from dfqbench.api.errors import DfqError, UsageError
from dfqbench.models.identity import file_sha256

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, bytes so far, and bytes in all if the server gives their number."""

_CHUNK = 2**18
_TIMEOUT = 30.0
"""Seconds without an answer."""
_AGAIN = "try again, or use --mirror"


def mirrored(url: str, mirror: str | None) -> str:
    """Replace scheme and host of a URL by those of a mirror, with the mirror's path in front.

    Raises:
        UsageError: the mirror is not an http or https URL.
    """
    if mirror is None:
        return url
    try:
        base = urlsplit(mirror)
    except ValueError:
        base = urlsplit("")
    if base.scheme not in ("http", "https") or not base.netloc:
        raise UsageError(f"'{mirror}' is not the URL of a mirror", "write http://host:port or https://host")
    path = base.path.rstrip("/") + urlsplit(url).path
    return urlsplit(url)._replace(scheme=base.scheme, netloc=base.netloc, path=path, fragment="").geturl()


def download(
    url: str, path: Path, *, algorithm: str = "sha256", digest: str | None = None, progress: Progress | None = None
) -> None:
    """Download a file from a web server.

    Args:
        url: http or https.
        path: where to write it, in a folder that the caller removes on errors.
        algorithm: hash function of `digest`.
        digest: what the file's hash must start with, or None where none is published.
        progress: called for every chunk.

    Raises:
        UsageError: the server cannot be reached, or does not have the file.
        DfqError: the file is incomplete, or has another hash.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UsageError(f"'{url}' is not an http or https URL", "correct the mirror")
    state = hashlib.new(algorithm, usedforsecurity=False)
    received = 0
    request = urllib.request.Request(url, headers={"User-Agent": "dfqbench"})  # noqa: S310 - the scheme was checked
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, path.open("wb") as file:  # noqa: S310
            length = response.headers.get("Content-Length")
            total = None if length is None else int(length)
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                state.update(chunk)
                received += len(chunk)
                if progress is not None:
                    progress(path.name, received, total)
    except urllib.error.HTTPError as error:
        with error:
            reason = f"{error.code} {error.reason}"
            raise UsageError(f"{url}: the server answers {reason}", "check the name or the mirror") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        cause = getattr(error, "reason", None) or error
        raise UsageError(f"cannot download {url}: {cause}", "check the network, or use --mirror") from error
    if total is not None and received != total:
        raise DfqError(f"the download of {url} broke off after {received} of {total} bytes", _AGAIN)
    if digest is not None and not state.hexdigest().startswith(digest.lower()):
        got = state.hexdigest()[:12]
        raise DfqError(f"{url} has {algorithm} {got}..., not {digest[:12]}...: it is corrupt", _AGAIN)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository of the Hugging Face Hub.

    Attributes:
        repo: `owner/name`.
        name: path in the repository.
        revision: branch, tag or commit; None: the main branch.
        endpoint: scheme and host of the hub; None: `HF_ENDPOINT`, or the hub itself.
    """

    repo: str
    name: str
    revision: str | None = None
    endpoint: str | None = None

    @property
    def url(self) -> str:
        """The file's address."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.name, revision=self.revision, endpoint=self.endpoint)


def download_from_hub(source: HubFile) -> Path:
    """Download a file into the hub client's own cache, or find it there; compare it with its published hash.

    Returns:
        The file in the cache.

    Raises:
        UsageError: the hub cannot be reached, or does not hand out the file.
        DfqError: the file is damaged, also after a second download.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_download

    repo, name, revision, endpoint = source.repo, source.name, source.revision, source.endpoint
    try:
        # Large files carry their SHA-256 as the tag.
        tag = get_hf_file_metadata(source.url, token=get_token()).etag or ""
        for force in (False, True):
            file = Path(hf_hub_download(repo, name, revision=revision, endpoint=endpoint, force_download=force))
            if not re.fullmatch(r"[0-9a-f]{64}", tag) or file_sha256(file) == tag:
                return file
    except Exception as error:  # the client's own errors, and those of the HTTP library of its version
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = "check the network, HF_ENDPOINT and HF_TOKEN, or use --mirror"
        raise UsageError(f"cannot download {source.url}: {reason}", hint) from error
    raise DfqError(f"{source.url} does not have sha256 {tag[:12]}...: it is corrupt", _AGAIN)
