"""``python -m stages verify``: whether artifacts have the content that DVC noted when their stages finished.

``dvc.lock`` has the MD5 of every output, so that this needs no record of its own and holds for artifacts that were
pulled as well. DVC itself looks at a file's content only when its time or size has changed.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from stages.artifacts import file_digest
from stages.errors import InputError
from stages.progress import track

LOCK = Path("dvc.lock")


def verify(paths: Sequence[Path]) -> int:
    """Compare the content of artifacts with ``dvc.lock``; without `paths` that of all.

    Args:
        paths: artifacts, files in them, or directories of them.

    Returns:
        How many artifacts have been compared.

    Raises:
        InputError: one is missing or has other content, with the stage that makes it; or nothing is known of a path.
    """
    noted = _noted()
    chosen = noted if not paths else dict(item for path in paths for item in _at(path, noted))
    for artifact, (stage, md5) in track(sorted(chosen.items()), "verifying"):
        if not artifact.exists():
            raise InputError(f"{artifact}: not found; run `dvc pull` or `dvc repro {stage}`")
        if digest(artifact) != md5:
            raise InputError(f"{artifact}: its content is not what {LOCK} notes; delete it and run `dvc repro {stage}`")
    return len(chosen)


def digest(path: Path) -> str:
    """The MD5 of a file; of a directory, as DVC has it, that of the list of its files with theirs, and ".dir"."""
    if not path.is_dir():
        return file_digest(path, "md5")
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    listed = [{"md5": digest(file), "relpath": name} for name, file in sorted(files.items())]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"


def _noted() -> dict[Path, tuple[str, str]]:
    """The outputs in ``dvc.lock`` with their stage and MD5."""
    try:
        stages = yaml.safe_load(LOCK.read_text(encoding="utf-8"))["stages"].items()
        return {Path(out["path"]): (name, out["md5"]) for name, stage in stages for out in stage.get("outs", [])}
    except FileNotFoundError:
        raise InputError(f"{LOCK}: not found in {Path.cwd()}; `dvc repro` notes there what it makes") from None
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{LOCK}: not a lock file of DVC ({reason}); take it from git, or run `dvc repro`") from None


def _at(path: Path, noted: dict[Path, tuple[str, str]]) -> Iterator[tuple[Path, tuple[str, str]]]:
    """The artifacts at, below or above `path`."""
    place = Path(os.path.relpath(path))
    found = [item for item in noted.items() if item[0].is_relative_to(place) or place.is_relative_to(item[0])]
    if not found:
        raise InputError(f"{path}: {LOCK} notes no such artifact; there are {', '.join(map(str, noted))}")
    yield from found
