"""What the Hugging Face Hub says, and its errors in our words. Blocking: for threads.

huggingface_hub takes a second to import, hence inside the functions. It is used for addresses,
tokens and errors; the files are fetched by :mod:`mlx_router.downloads.transfer`, since this library
begins a file anew when its download was interrupted.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlx_router.downloads.selection import RepoFile
from mlx_router.errors import (
    InsufficientStorage,
    ModelNotFound,
    PermissionDenied,
    RouterError,
    Unavailable,
)
from mlx_router.version import __version__

log = logging.getLogger(__name__)

_TIMEOUT = 10.0  # seconds without a byte
_RETRY_SECONDS = 30
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LEAST_SEARCHED = 3  # letters
_SEARCHED = 50  # answers to a search
_LIKENESS = 0.4
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be gone at the next try

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN for the server"


class NotAHub(Exception):
    """An answer that the Hub would not give."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A model's repository at one commit."""

    name: str
    commit: str
    files: tuple[RepoFile, ...]


def utils() -> Any:
    """The tools of huggingface_hub, which makes their names when they are asked for."""
    return importlib.import_module("huggingface_hub.utils")


def repository(name: str, revision: str | None = None) -> Repository:
    """Ask for a repository's files, at a branch, tag or commit (None: main). Raises what
    :func:`explain` explains."""
    info = _api().model_info(name, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise NotAHub("no commit")
    return Repository(name, info.sha, tuple(map(_file, info.siblings or ())))


def nearest(name: str, count: int = 3) -> list[str]:
    """Repositories with a name like this one, the likeliest first. The Hub finds parts of names, so
    it is asked for less and less of it. Raises what :func:`explain` explains."""
    words = re.split(r"[-_.\s]+", name.rsplit("/", 1)[-1])
    for parts in dict.fromkeys((len(words), len(words) - 1, (len(words) + 1) // 2)):
        wanted = "-".join(words[:parts])
        if len(wanted) < _LEAST_SEARCHED:
            break
        found = [info.id for info in _api().list_models(search=wanted, limit=_SEARCHED)]
        if near := difflib.get_close_matches(name, found, n=count, cutoff=_LIKENESS):
            return near
    return []


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="mlx-router", library_version=__version__)


def _file(sibling: Any) -> RepoFile:
    large = sibling.lfs
    if not isinstance(sibling.size, int) or sibling.size < 0:
        raise NotAHub(f"no size of {sibling.rfilename!r}")
    file = RepoFile(
        name=str(sibling.rfilename),
        size=sibling.size,
        sha256=large.sha256 if large else None,
        git_sha1=None if large else sibling.blob_id,
    )
    if file.sha256 is None and file.git_sha1 is None:
        raise NotAHub(f"no hash of {sibling.rfilename!r}")
    return file


@contextmanager
def reading(source: Repository, file: RepoFile, offset: int) -> Iterator[Any]:
    """A response (of httpx) with the file's bytes from ``offset``; with status 200 instead of 206
    it has all of them. A token goes to the Hub alone, not to where it sends us."""
    from huggingface_hub import get_session, hf_hub_url

    headers = utils().build_hf_headers(library_name="mlx-router", library_version=__version__)
    headers["Accept-Encoding"] = "identity"  # a range is of the bytes as they are sent
    if offset:
        headers["Range"] = f"bytes={offset}-"
    url = hf_hub_url(source.name, file.name, revision=source.commit)
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT) as response:
        utils().hf_raise_for_status(response)
        yield response


def is_passing(error: Exception) -> bool:
    """Whether another try may go better: the network, or a busy server."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _PASSING
    return isinstance(error, utils().httpx.TransportError)


def explain(error: Exception, name: str) -> RouterError:
    """The error for the client; what there is on this machine is for others to say."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, RouterError):
        return error
    if isinstance(error, GatedRepoError):  # which is a RepositoryNotFoundError, too
        return PermissionDenied(
            f"{name} is gated on the Hugging Face Hub: accept its licence on its page there, then "
            f"{_LOG_IN}.",
            param="model",
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return ModelNotFound(
            f"The Hugging Face Hub does not have {name} either; if it is private there, {_LOG_IN}.",
            param="model",
        )
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound(
            f"{name} has no such revision on the Hugging Face Hub: name a branch, a tag or a "
            "commit that its page there shows.",
            param="model",
            code="revision_not_found",
        )
    if isinstance(error, DisabledRepoError):
        return PermissionDenied(f"{name} is disabled on the Hugging Face Hub.", param="model")
    if isinstance(error, OfflineModeIsEnabled):
        return Unavailable(
            f"{name} is not on this machine, and the server is kept offline by HF_HUB_OFFLINE: "
            "unset it, or put the model into the model directory.",
            param="model",
            retry_after=_RETRY_SECONDS,
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return PermissionDenied(
                f"The Hugging Face Hub does not give out {name} (status {status}): {_LOG_IN}.",
                param="model",
            )
        return _unavailable(name, f"the Hugging Face Hub answers with status {status}")
    if isinstance(error, utils().httpx.TransportError):
        log.warning("the Hugging Face Hub: %s: %s", type(error).__name__, error)
        return _unavailable(name, "the Hugging Face Hub cannot be reached")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientStorage(
            f"The disk is full: {name} could not be downloaded. Make room, then ask again.",
            param="model",
            retry_after=_RETRY_SECONDS,
        )
    if isinstance(error, OSError):
        log.error("the download of %s failed: %s", name, error)
        return _unavailable(name, f"it cannot be written ({error.strerror or 'error'})")
    log.error("the download of %s failed", name, exc_info=error)
    return _unavailable(name, "what the Hugging Face Hub sends is not what it should be")


def _unavailable(name: str, why: str) -> Unavailable:
    return Unavailable(
        f"{name} could not be downloaded: {why}. Ask again later; what is here by then is kept.",
        param="model",
        retry_after=_RETRY_SECONDS,
    )
