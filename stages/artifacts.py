"""Where the artifacts lie, how they are written (beside, then renamed) and the provenance that each one carries."""

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from stages.errors import InputError, OutsideError

IMAGES = Path("data/images")
DATASET = Path("data/dataset.json")
SPLITS = Path("data/splits.json")
CLIP = Path("models/clip")
BACKBONE = Path("models/backbone")
FEATURES = Path("data/features.h5")
CONCEPTS = Path("data/concepts.parquet")
CONCEPT_DISTRIBUTION = Path("data/concept_distribution.parquet")
SIMILARITY = Path("data/similarity.parquet")
COMPONENTS = Path("data/components.h5")
HASHNET = Path("models/hashnet")
CODES = Path("data/codes.h5")
INDEX = Path("data/index")
MAP = Path("data/map.parquet")
METRICS = Path("reports/metrics.json")
BASELINES = Path("reports/baselines.json")
BASELINES_QUERY_PRECISION = Path("reports/baselines_query_precision.parquet")
BASELINES_PRECISION_RECALL = Path("reports/plots/baselines_precision_recall.csv")
BASELINES_PRECISION_AT_N = Path("reports/plots/baselines_precision_at_n.csv")
PRECISION_RECALL = Path("reports/plots/precision_recall.csv")
PRECISION_AT_N = Path("reports/plots/precision_at_n.csv")
QUERY_PRECISION = Path("reports/query_precision.parquet")
TRAINING = Path("reports/train")
EXPLAIN = Path("reports/explain")

#: The stage that makes an artifact, for "rebuild it with ..." in messages.
PRODUCER = {
    IMAGES: "download", DATASET: "download", SPLITS: "download", CLIP: "weights", BACKBONE: "weights",
    FEATURES: "extract", CONCEPTS: "mine",
    CONCEPT_DISTRIBUTION: "mine", SIMILARITY: "similarity", COMPONENTS: "components", HASHNET: "train",
    TRAINING: "train", CODES: "encode", INDEX: "index", MAP: "map", BASELINES: "baselines",
    BASELINES_PRECISION_RECALL: "baselines", BASELINES_PRECISION_AT_N: "baselines",
    BASELINES_QUERY_PRECISION: "baselines", METRICS: "evaluate",
    PRECISION_RECALL: "evaluate", PRECISION_AT_N: "evaluate", QUERY_PRECISION: "evaluate", EXPLAIN: "explain",
}  # fmt: skip

#: Key of the provenance in Parquet schema metadata, HDF5 root attributes and JSON artifacts.
PROVENANCE_KEY = "conceptbits"

#: Work in progress that may be resumed: undeclared to DVC, ignored by git, keyed by a hash of its inputs.
RESUME = Path(".resume")


def rebuild_hint(path: Path) -> str:
    """What to run to make `path` (an artifact or a file in one) again, as the end of a message.

    Of an artifact of a project elsewhere (``other/data/codes.h5``) it says where to run it, too.
    """
    for part in (path, *path.parents):
        for artifact, stage in PRODUCER.items():
            project, rest = part.parts[: -len(artifact.parts)], part.parts[-len(artifact.parts) :]
            if rest == artifact.parts:
                return f"rebuild it with `dvc repro {stage}`" + (f" in {Path(*project)}" if project else "")
    return "rebuild it"


def damaged(path: Path, reason: object) -> InputError | OSError:
    """The error for an artifact that has not the expected schema, or cannot be read: then perhaps one of the disk."""
    if isinstance(reason, Exception) and (number := disk_error(reason)[0]) in DISK_ERRORS:
        return OSError(number, os.strerror(number), str(path))
    return InputError(f"{path}: {' '.join(str(reason).split())}; {rebuild_hint(path)}")


@dataclass(frozen=True)
class Provenance:
    """What an artifact was made from.

    Attributes:
        stage: the stage that wrote it.
        dataset: digest of the data set (``digest`` in ``data/dataset.json``); "" where there is none (``weights``).
        model: SHA-256 of the vision-language checkpoint; "" before ``extract``.
        params: the parameters that the stage ran with.
        versions: the libraries that shaped the content.
    """

    stage: str
    dataset: str = ""
    model: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes | None, path: Path) -> "Provenance":
        """Parse the provenance of the artifact at `path`.

        Raises:
            InputError: there is none, or it is not of this form.
        """
        try:
            return cls(**json.loads(text or ""))
        except (ValueError, TypeError):
            raise damaged(path, "carries no provenance of this pipeline") from None

    def require_same(self, other: "Provenance", path: Path, other_path: Path) -> None:
        """Refuse `path` (whose provenance is `self`) beside `other_path` when they differ in data set or model.

        Raises:
            InputError: names both and the stage to run again.
        """
        for what, mine, theirs in (("data set", self.dataset, other.dataset), ("model", self.model, other.model)):
            if mine and theirs and mine != theirs:
                raise InputError(
                    f"{path}: made with another {what} ({mine[:12]}) than {other_path} ({theirs[:12]}); "
                    f"{rebuild_hint(path)}"
                )


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of the distributions `names`."""
    return {name: version(name) for name in names}


#: A temporary of a process of this machine that has ended, or one older than this many seconds, is left over from a
#: killed run.
STALE_AFTER = 24 * 3600

#: Errors of the disk that the user can mend, wherever they come up.
DISK_ERRORS = frozenset((
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO
))  # fmt: skip


def disk_error(error: Exception) -> tuple[int | None, str | None]:
    """Number and path that an error of the operating system has; HDF5, Arrow and safetensors put them into the text."""
    number, path = getattr(error, "errno", None), getattr(error, "filename", None)
    told = re.search(r"(?:errno[ =]+|os error |code: )(\d+)", str(error), re.IGNORECASE)
    named = re.search(r"name = '([^']+)'", str(error))
    return (
        number if number or not told else int(told[1]),
        os.fsdecode(path) if path is not None else named and named[1],
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`; renamed to `path` when the block succeeds, removed when it fails.

    Works where `path` is a read-only link into the DVC cache, since the link itself is replaced.

    Raises:
        OSError: the disk is full or read-only; names `path`, whichever library met it.
    """
    with _naming(path):
        handle, name = tempfile.mkstemp(suffix=f".tmp{path.suffix}", **_beside(path))
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _flush(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Like :func:`replacing`, as an open file, for libraries that cannot take a failed write (HDF5, PyTorch).

    An error of the disk is raised at the end of the block; so is Ctrl-C, which otherwise ends a write as well.
    """
    with _signals_deferred(), replacing(path) as temporary, _PatientFile(temporary, "w+") as file:
        try:
            yield file
        finally:
            if file.error:
                raise file.error


@contextmanager
def _signals_deferred() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # the only one that handles signals
        yield
        return
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


class _PatientFile(io.FileIO):
    """A file that keeps its first error to itself and drops what is written after it.

    HDF5 ends the whole process when it is told, and PyTorch's writer hides the reason.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        with self._keeping_error():
            while rest and not self.error:
                rest = rest[os.write(self.fileno(), rest) :]
        return size

    def truncate(self, size: int | None = None) -> int:
        with self._keeping_error():
            super().truncate(size)
        return self.tell() if size is None else size

    @contextmanager
    def _keeping_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Like :func:`replacing` for a directory: `path` is the old one, the complete new one, or (killed between) absent.

    Raises:
        OSError: as of :func:`replacing`.
    """
    with _naming(path):
        temporary = Path(tempfile.mkdtemp(suffix=".tmp", **_beside(path)))
        old = temporary.with_suffix(".old.tmp")
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            os.chmod(temporary, 0o755)
            if path.is_dir() and not path.is_symlink():
                os.replace(path, old)  # at once: deleting it takes time, and half of it must never lie there
            else:
                path.unlink(missing_ok=True)
            os.replace(temporary, path)
        finally:
            with _signals_deferred():  # the deleting, which takes time, is not left half done
                shutil.rmtree(temporary, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path) -> dict[str, Any]:
    """Where a temporary for `path` goes and how its name begins; what killed runs have left there is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}."
    for other in _left(path.parent.absolute()):
        owner = re.match(re.escape(prefix) + r"(\w+)-(\d+)\.", other.name)
        if owner and _is_stale(other, owner[1], int(owner[2])):
            if other.is_dir():
                shutil.rmtree(other, ignore_errors=True)
            else:
                other.unlink(missing_ok=True)
    return {"prefix": f"{prefix}{_here()}-{os.getpid()}.", "dir": path.parent}


@cache
def _left(directory: Path) -> list[Path]:
    """The temporaries there when this process first wrote there: looked for once, since parts come by the thousand."""
    return list(directory.glob(".*.tmp*"))


@cache
def _here() -> str:
    """What tells where a process number holds: this machine and, in a container, its processes alone."""
    processes = ""
    with suppress(OSError):  # not on Linux
        processes = str(Path("/proc/self/ns/pid").readlink())
    return fingerprint([socket.gethostname(), processes])[:8]


def _is_stale(temporary: Path, place: str, process: int) -> bool:
    if place == _here():
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except OSError:  # there is one, of another user
            pass
    try:  # it is another machine's, or the number now belongs to another process
        return time.time() - temporary.stat().st_mtime > STALE_AFTER
    except FileNotFoundError:
        return False


def _flush(file: Path) -> None:
    """Bring a file to the disk before it is renamed, so that not even a power cut leaves it empty."""
    with open(file, "rb") as written:
        os.fsync(written.fileno())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an error of the disk into an OSError that names `path`: the libraries name a temporary, or nothing."""
    try:
        yield
    except (InputError, OutsideError):
        raise
    except Exception as error:
        number, place = disk_error(error)
        if number not in DISK_ERRORS or not _is_of(path, number, place):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _is_of(path: Path, number: int, place: str | None) -> bool:
    """Whether an error of the disk came of writing `path`, and not of reading something else meanwhile."""
    if place is None:
        return number != errno.EIO
    temporary = any(part.startswith(f".{path.name}.") for part in Path(place).parts)
    return temporary or path.absolute().is_relative_to(Path(place).absolute())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` as indented JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON artifact.

    Raises:
        InputError: it is missing, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; {rebuild_hint(path)}") from None
    except ValueError as error:
        raise damaged(path, f"not valid JSON ({error})") from None
    except OSError as error:
        raise damaged(path, error) from None
    if not isinstance(content, dict):
        raise damaged(path, "not a JSON object")
    return content


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table atomically."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    return file_digest(path, "sha256")


def file_digest(path: Path, algorithm: str) -> str:
    """Hexadecimal digest of a file, read in pieces.

    Raises:
        OSError: it cannot be read; names `path`.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def fingerprint(content: Any) -> str:
    """A short hash of anything JSON can hold, to key work that may be resumed."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def resume_directory(stage: str, key: Any, alone: bool = True) -> Path:
    """The directory for unfinished work of `stage` with inputs `key`, made if needed; other keys' leftovers go.

    Work that other code began is not gone on with. The caller removes it (:func:`shutil.rmtree`) when it is done.

    Args:
        alone: False where other processes may be at work with another key, whose files have to stay.
    """
    code = [sha256(file) for file in sorted(Path(__file__).parent.rglob("*.py"))]
    directory = RESUME / f"{stage}-{fingerprint([key, code])}"
    for other in RESUME.glob(f"{stage}-*") if alone else ():
        if other != directory:
            shutil.rmtree(other, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
