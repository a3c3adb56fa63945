"""Files from the Hugging Face hub, whose failures come within seconds and say what to do.

``huggingface_hub`` retries an unreachable hub for minutes and starts a body that always breaks off again for ever, and
open_clip turns every failure into "file not found". So each file is asked for without retries before it is downloaded.
"""

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import logging, tqdm

from stages.errors import InputError, OutsideError

#: Seconds to wait for the hub's first answer.
TIMEOUT = 10

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class HubFile(NamedTuple):
    """A downloaded file and where it came from."""

    path: Path
    repository: str
    commit: str
    name: str

    def __str__(self) -> str:
        return f"hf-hub:{self.repository}@{self.commit}/{self.name}"


def page(repository: str) -> str:
    """The address of a repository for a person."""
    return f"{constants.ENDPOINT}/{repository}"


def download(repository: str, names: Sequence[str], otherwise: str, commit: str | None = None) -> HubFile:
    """The first of `names` that the repository has, from the hub or from the hub's own cache on this machine.

    Args:
        repository: ``org/name``.
        names: file names, the preferred one first.
        otherwise: what to do without the hub, the end of the message of a failure.
        commit: the version; None takes the newest.

    Raises:
        InputError: no such repository, no access to it, or none of the files is in it.
        OutsideError: the hub cannot be reached or does not answer as it should.
    """
    logging.set_verbosity_error()  # one line at the end instead of one for each retry
    for name in names:
        try:
            return _download(repository, name, commit)
        except RemoteEntryNotFoundError:
            continue
        except HFValidationError:
            raise InputError(f"clip.model: {repository!r} is no hub repository; it has the form org/name") from None
        except Exception as error:  # the client's HTTP library changes from release to release; so do its errors
            failure = _failure(repository, name, error, otherwise)
            cached = _cached(repository, names, commit)
            if cached is None:
                raise failure from None
            return cached
    raise InputError(
        f"clip.model: {page(repository)} has no {' or '.join(names)}, so it is no open_clip model; take another one"
    )


def list_files(repository: str, commit: str, otherwise: str) -> list[str]:
    """Names of all files of a repository.

    Raises:
        InputError, OutsideError: as for :func:`download`.
    """
    try:
        siblings = HfApi().model_info(repository, revision=commit, timeout=TIMEOUT).siblings or []
    except Exception as error:  # see download
        raise _failure(repository, "its list of files", error, otherwise) from None
    return [sibling.rfilename for sibling in siblings]


def _download(repository: str, name: str, commit: str | None) -> HubFile:
    get_hf_file_metadata(hf_hub_url(repository, name, revision=commit), timeout=TIMEOUT)  # fails at once, if at all
    path = hf_hub_download(repository, name, revision=commit, etag_timeout=TIMEOUT, tqdm_class=_DownloadBar)
    return _hub_file(path, repository)


def _cached(repository: str, names: Sequence[str], commit: str | None) -> HubFile | None:
    """The first of `names` that an earlier run has fetched."""
    paths = (try_to_load_from_cache(repository, name, revision=commit) for name in names)
    return next((_hub_file(path, repository) for path in paths if isinstance(path, str)), None)


def _hub_file(path: str, repository: str) -> HubFile:
    # The cache's layout is public: .../snapshots/COMMIT/NAME
    return HubFile(Path(path), repository, Path(path).parent.name, Path(path).name)


def _failure(repository: str, name: str, error: Exception, otherwise: str) -> InputError | OutsideError:
    """The error to raise for a failed request; one of the disk is raised as it is."""
    if isinstance(error, GatedRepoError):
        return InputError(
            f"clip.model: {page(repository)} wants its terms accepted; do so there, log in with `hf auth login`, "
            f"and repeat; or {otherwise}"
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError):
        return InputError(
            f"clip.model: {page(repository)} does not exist or is private; correct the name, or log in with "
            f"`hf auth login`"
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        raise error
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return OutsideError(f"{page(repository)}: cannot fetch {name} ({reason}); repeat it later, or {otherwise}")


class _DownloadBar(tqdm):
    """The client's own progress bar (silent off the terminal), and the end of a download that would never end."""

    received = 0.0

    def update(self, n: float | None = 1) -> bool | None:
        # The client starts again whenever data came before the connection broke, even if it breaks every time.
        self.received += max(n or 0, 0)
        if self.total and self.received > 2 * self.total:
            raise OSError("the connection breaks off before the end of the file, again and again")
        return super().update(n)
