"""Download a file from the Hugging Face Hub, through the client that knows its tokens, mirrors and cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dfqbench.api.errors import DfqError, UsageError
from dfqbench.models.identity import file_sha256

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository of the hub.

    Attributes:
        repo: `owner/name`.
        name: path within the repository.
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
    """Download a file into the hub's own cache, or find it there; compare it with its published hash.

    Returns:
        The file in the cache.

    Raises:
        UsageError: the hub cannot be reached, or does not hand out the file.
        DfqError: the file is damaged, also after a second download.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_download

    try:
        # Large files carry their SHA-256 as the tag.
        tag = get_hf_file_metadata(source.url, token=get_token()).etag or ""
        for again in (False, True):
            file = Path(
                hf_hub_download(
                    source.repo, source.name, revision=source.revision, endpoint=source.endpoint, force_download=again
                )
            )
            if not _SHA256.fullmatch(tag) or file_sha256(file) == tag:
                return file
    except Exception as error:  # the client's own errors, and those of the HTTP library of its version
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"cannot download {source.url}: {reason}", "check the network, HF_ENDPOINT and HF_TOKEN, or use --mirror"
        ) from error
    raise DfqError(f"{source.url} does not have sha256 {tag[:12]}...: it is corrupt", "try again, or use --mirror")
