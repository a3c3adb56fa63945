"""Files from the Hugging Face hub, whose failures come within seconds and say what to do.

``huggingface_hub`` retries an unreachable hub for minutes, lists files without any time limit, starts a body that
always breaks off again for ever, and open_clip turns every failure into "file not found". So everything is asked for
without retries before it is downloaded.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    get_session,
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
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, logging, tqdm

from stages.artifacts import DISK_ERRORS, sha256, write_json
from stages.errors import InputError, OutsideError
from stages.offline import offline

#: Seconds to wait for the hub's first answer.
TIMEOUT = 10


class Repository(NamedTuple):
    """What is asked for, and how messages speak of it.

    Attributes:
        name: ``org/name``.
        kind: what it holds.
        key: the key of ``params.yaml`` that names it.
        otherwise: what to do without the hub, the end of the message of a failure.
        revision: a branch, tag or commit; None is the newest version.
    """

    name: str
    kind: Literal["model", "dataset"]
    key: str
    otherwise: str
    revision: str | None = None

    @property
    def page(self) -> str:
        """Its address for a person."""
        return page(self.name, self.kind)


class HubFile(NamedTuple):
    """A downloaded file and where it came from."""

    path: Path
    repository: str
    commit: str
    name: str

    def __str__(self) -> str:
        return f"hf-hub:{self.repository}@{self.commit}/{self.name}"


@dataclass(frozen=True)
class Snapshot:
    """Files of one version of a repository.

    Attributes:
        commit: the version; `licence`: what its card says, "" for nothing.
        files: where each file lies on this machine, by its name; `digests`: their SHA-256.
        asked: whether the hub was asked, or only its cache.
    """

    commit: str
    licence: str
    files: dict[str, Path]
    digests: dict[str, str]
    asked: bool


def page(name: str, kind: str) -> str:
    """The address of a repository for a person."""
    return f"{constants.ENDPOINT}/{'' if kind == 'model' else f'{kind}s/'}{name}"


def download(repository: Repository, names: Sequence[str]) -> HubFile:
    """The first of `names` that the repository has, from the hub or from the hub's own cache on this machine.

    Raises:
        InputError: no such repository, no access to it, or none of the files is in it.
        OutsideError: the hub cannot be reached or does not answer as it should.
    """
    logging.set_verbosity_error()  # one line at the end instead of one for each retry
    for name in names:
        try:
            _require_online(repository)
            return _download(repository, name)
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # the client's HTTP library changes from release to release; so do its errors
            failure = _failure(repository, name, error)
            cached = (_cached(repository, name) for name in names)
            found = next(filter(None, cached), None)
            if found is None:
                raise failure from None
            return found
    raise InputError(f"{repository.key}: {repository.page} has no {' or '.join(names)}; take another one")


def list_files(repository: Repository) -> dict[str, str]:
    """Names of all files of a repository, and their SHA-256 ("" for small ones, of which the hub knows none).

    Raises:
        InputError, OutsideError: as for :func:`download`.
    """
    try:
        _require_online(repository)
        return _list_files(repository)
    except Exception as error:  # see download
        raise _failure(repository, "its list of files", error) from None


def snapshot(repository: Repository, choose: Callable[[Iterable[str]], Sequence[str]]) -> Snapshot:
    """The files that `choose` picks from the names of all, downloaded one after another and verified.

    What the hub's cache on this machine has is not downloaded again; without the hub it is all there is, for a revision
    that was downloaded before.

    Raises:
        InputError, OutsideError: as for :func:`download`; whatever `choose` raises.
    """
    logging.set_verbosity_error()
    try:
        _require_online(repository)
        version, failure = _look_up(repository), None
    except Exception as error:  # see download
        failure = _failure(repository, "its list of files", error)
        version = _recall(repository)
        if version is None:
            raise failure from None
    names = choose(version.digests)
    at_commit = repository._replace(revision=version.commit)
    files, digests = {}, {}
    for name in names:
        file = _cached(at_commit, name)
        if file is None and failure:
            raise failure
        if file is None:
            try:
                file = _download(at_commit, name)
            except Exception as error:  # see download
                raise _failure(repository, name, error) from None
        files[name] = file.path
        digests[name] = _verified(file.path, f"{repository.page}: {name}", version.digests[name])
    if failure is None:
        _remember(repository, version)
    return Snapshot(version.commit, version.licence, files, digests, asked=failure is None)


def _require_online(repository: Repository) -> None:
    if variable := offline():
        raise InputError(
            f"{repository.key}: {repository.page} is not in the hub's cache ({constants.HF_HUB_CACHE}), and {variable} "
            f"is set, so it is not fetched; unset it, or {repository.otherwise}"
        )


def _download(repository: Repository, name: str) -> HubFile:
    where = {"repo_type": repository.kind, "revision": repository.revision}
    get_hf_file_metadata(hf_hub_url(repository.name, name, **where), timeout=TIMEOUT)  # fails at once, if at all
    path = hf_hub_download(repository.name, name, etag_timeout=TIMEOUT, tqdm_class=_DownloadBar, **where)
    return _hub_file(path, repository.name, name)


def _cached(repository: Repository, name: str) -> HubFile | None:
    """A file that an earlier run has fetched."""
    try:
        path = try_to_load_from_cache(repository.name, name, revision=repository.revision, repo_type=repository.kind)
    except ValueError:  # no name that a repository can have
        return None
    return _hub_file(path, repository.name, name) if isinstance(path, str) else None


def _hub_file(path: str, repository: str, name: str) -> HubFile:
    # The cache's layout is public: .../snapshots/COMMIT/NAME
    return HubFile(Path(path), repository, Path(path).parents[name.count("/")].name, name)


@dataclass(frozen=True)
class _Version:
    """What the hub says of one version of a repository; `digests` as of :func:`list_files`."""

    commit: str
    licence: str
    digests: dict[str, str]


def _look_up(repository: Repository) -> _Version:
    info = HfApi().repo_info(
        repository.name, repo_type=repository.kind, revision=repository.revision, timeout=TIMEOUT,
        expand=["sha", "cardData"],
    )  # fmt: skip
    licence = info.card_data.get("license") if info.card_data else None
    listed = _list_files(repository._replace(revision=info.sha))
    return _Version(info.sha, licence if isinstance(licence, str) else "", listed)


def _list_files(repository: Repository) -> dict[str, str]:
    # HfApi.list_repo_tree waits for ever where the hub does not answer; the lists of repo_info are cut when long.
    path = f"api/{repository.kind}s/{repository.name}/tree/{quote(repository.revision or 'main', safe='')}"
    url: str | None = f"{constants.ENDPOINT}/{path}?recursive=true"
    found = {}
    while url:
        response = get_session().get(url, headers=build_hf_headers(), timeout=TIMEOUT)
        hf_raise_for_status(response)
        for entry in response.json():
            if entry["type"] == "file":
                found[entry["path"]] = (entry.get("lfs") or {}).get("oid", "")
        url = response.links.get("next", {}).get("url")
        if url and not url.startswith(f"{constants.ENDPOINT}/"):  # which must not get the token
            raise ValueError(f"its list goes on at another place, {url[:100]}")
    return found


def _record(repository: Repository) -> Path:
    """Where the list of files of a revision is kept: in the hub's cache, so that it moves with the files."""
    directory = "--".join((f"{repository.kind}s", *repository.name.split("/")))
    revision = quote(repository.revision, safe="") if repository.revision else "@newest"  # which no branch is called
    return Path(constants.HF_HUB_CACHE) / directory / "conceptbits" / f"{revision}.json"


def _remember(repository: Repository, version: _Version) -> None:
    for revision in {repository.revision, version.commit}:
        with suppress(OSError):  # a shared cache may be read-only
            write_json(_record(repository._replace(revision=revision)), asdict(version))


def _recall(repository: Repository) -> _Version | None:
    try:
        return _Version(**json.loads(_record(repository).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _verified(path: Path, what: str, expected: str) -> str:
    """The SHA-256 of a file, once it is as it should be ("": unknown).

    Raises:
        InputError: it is not; the file has been deleted then.
    """
    found = sha256(path)
    if expected and found != expected:
        path.resolve().unlink()  # in the cache, the name is a link to the content
        path.unlink(missing_ok=True)
        raise InputError(f"{what}: SHA-256 is {found}, the hub's is {expected}; it was deleted, run it again")
    return found


def _failure(repository: Repository, name: str, error: Exception) -> InputError | OutsideError:
    """The error to raise for a failed request; one of the disk is raised as it is."""
    where = f"{repository.key}: {repository.page}"
    if isinstance(error, InputError):
        return error
    if isinstance(error, HFValidationError):
        return InputError(f"{repository.key}: {repository.name!r} is no hub repository; it has the form org/name")
    if isinstance(error, GatedRepoError):
        return InputError(
            f"{where} wants its terms accepted; do so there, log in with `hf auth login`, and repeat; or "
            f"{repository.otherwise}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return InputError(f"{where} does not exist or is private; correct the name, or log in with `hf auth login`")
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{where} has no revision {repository.revision!r}; correct it")
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        raise error
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return OutsideError(
        f"{repository.page}: cannot fetch {name} ({reason}); repeat it later, or {repository.otherwise}"
    )


class _DownloadBar(tqdm):
    """The client's own progress bar (silent off the terminal), and the end of a download that would never end."""

    received = 0.0

    def update(self, n: float | None = 1) -> bool | None:
        # The client starts again whenever data came before the connection broke, even if it breaks every time.
        self.received += max(n or 0, 0)
        if self.total and self.received > 2 * self.total:
            raise OSError("the connection breaks off before the end of the file, again and again")
        return super().update(n)
