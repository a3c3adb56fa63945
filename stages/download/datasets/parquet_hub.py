"""The Parquet files of a data set of the Hugging Face hub, pinned to a commit."""

import posixpath
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple

from stages.download.files import is_hidden
from stages.download.remote import RemoteFile
from stages.download.source import SPLIT_NAMES
from stages.errors import InputError

HUB = "hf://"


class Found(NamedTuple):
    """The files that a path means: where each lies by the name that it has there, and what is known of them all."""

    files: Mapping[str, Path | RemoteFile]
    digests: Mapping[str, str]
    name: str
    source: str
    licence: str = ""
    notes: tuple[str, ...] = ()
    identity: str = ""


def find_on_the_hub(path: str) -> Found:
    """The files of ``hf://datasets/owner/name[@revision][/file, folder or glob]``, pinned to a commit.

    Raises:
        InputError, OutsideError: as of :func:`stages.hub.snapshot`.
    """
    # Not at the top: every worker imports this module, and the hub's library takes longer than all the rest.
    from huggingface_hub import parse_hf_uri
    from huggingface_hub.errors import HfUriError

    from stages import hub

    try:
        uri = parse_hf_uri(path)
    except HfUriError as error:
        raise InputError(
            f"dataset.path: {path}: {' '.join(error.msg.split())} Write hf://datasets/owner/name@revision"
        ) from None
    if uri.type != "dataset":
        raise InputError(f"dataset.path: {path}: names a {uri.type}; a data set is hf://datasets/owner/name")
    otherwise = (
        f"download it elsewhere with `hf download --repo-type dataset {uri.id} --revision {uri.revision or 'main'} "
        f"--local-dir DIRECTORY` and set dataset.path: DIRECTORY"
    )
    repository = hub.Repository(uri.id, "dataset", "dataset.path", otherwise, uri.revision)
    snapshot = hub.snapshot(repository, partial(_chosen, path, uri.path_in_repo))
    pinned = posixpath.join(f"{HUB}datasets/{uri.id}@{snapshot.commit}", uri.path_in_repo).rstrip("/")
    notes = []
    if uri.revision != snapshot.commit:
        notes.append(f"To get the same files whatever changes on the hub, set dataset.path: {pinned}.")
        if not snapshot.asked:
            notes.append("The hub was not asked for a newer version; its cache on this machine was used.")
    if any(part.startswith("partial-") for name in snapshot.files for part in name.split("/")):
        notes.append("The hub has converted only the beginning of this data set to Parquet.")
    return Found(snapshot.files, snapshot.digests, uri.id, pinned, snapshot.licence, tuple(notes))


def _chosen(path: str, wanted: str, names: Iterable[str]) -> list[str]:
    """Those Parquet files of a repository that `wanted` means: a file, a folder, a glob, or "" for all.

    Raises:
        InputError: there is none; or it means all of them, and they are several data sets.
    """
    found = [name for name in names if name.endswith(".parquet") and not any(map(is_hidden, name.split("/")))]
    if not found:
        raise InputError(
            f"dataset.path: {path}: has no Parquet file; the hub's own conversion may be at @refs/convert/parquet"
        )
    if not wanted:
        folders = {name.split("/")[0] for name in found if "/" in name}
        configurations = sorted(folder for folder in folders if folder.lower() not in SPLIT_NAMES)
        if len(configurations) > 1:
            raise InputError(
                f"dataset.path: {path}: has several configurations; append one of {', '.join(configurations[:10])} as "
                f"a folder, or **/*.parquet for all of them"
            )
        return sorted(found)
    matching = [name for name in found if name == wanted or name.startswith(f"{wanted}/")]
    matching = matching or [name for name in found if _fits(name.split("/"), wanted.split("/"))]
    if not matching:
        raise InputError(f"dataset.path: {path}: matches none of its {len(found)} Parquet files ({found[0]}, ...)")
    return sorted(matching)


def _fits(parts: list[str], pattern: list[str]) -> bool:
    """Whether a path fits a glob, part by part, where ``**`` stands for any number of folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[count:], pattern[1:]) for count in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
