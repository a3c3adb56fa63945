"""Where the artifacts lie, how they are written (beside, then renamed) and the provenance that each one carries."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stages.errors import InputError

IMAGES = Path("data/images")
DATASET = Path("data/dataset.json")
CLIP = Path("models/clip")
FEATURES = Path("data/features.h5")
CONCEPTS = Path("data/concepts.parquet")
CONCEPT_DISTRIBUTION = Path("data/concept_distribution.parquet")
SIMILARITY = Path("data/similarity.parquet")
COMPONENTS = Path("data/components.h5")
HASHNET = Path("models/hashnet")
CODES = Path("data/codes.h5")
METRICS = Path("reports/metrics.json")
BASELINES = Path("reports/baselines.json")

#: The stage that makes an artifact, for "rebuild it with ..." in messages.
PRODUCER = {
    IMAGES: "download", DATASET: "download", CLIP: "weights", FEATURES: "extract", CONCEPTS: "mine",
    CONCEPT_DISTRIBUTION: "mine", SIMILARITY: "similarity", COMPONENTS: "components", HASHNET: "train",
    CODES: "encode", METRICS: "evaluate", BASELINES: "baselines",
}  # fmt: skip

#: Key of the provenance in Parquet schema metadata, HDF5 root attributes and JSON artifacts.
PROVENANCE_KEY = "conceptbits"

#: Work in progress that may be resumed: undeclared to DVC, ignored by git, keyed by a hash of its inputs.
RESUME = Path(".resume")


def rebuild_hint(path: Path) -> str:
    """What to run to make `path` (an artifact or a file in one) again, as the end of a message."""
    stage = next((PRODUCER[part] for part in (path, *path.parents) if part in PRODUCER), None)
    return f"rebuild it with `dvc repro {stage}`" if stage else "rebuild it"


def damaged(path: Path, reason: object) -> InputError:
    """The error for an artifact that cannot be read or has not the expected schema."""
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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`; renamed to `path` when the block succeeds, removed when it fails.

    Works where `path` is a read-only link into the DVC cache, since the link itself is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=f".tmp{path.suffix}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Like :func:`replacing` for a directory: `path` is the old one, the complete new one, or (killed between) absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    if not isinstance(content, dict):
        raise damaged(path, "not a JSON object")
    return content


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(content: Any) -> str:
    """A short hash of anything JSON can hold, to key work that may be resumed."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def resume_directory(stage: str, key: Any) -> Path:
    """The directory for unfinished work of `stage` with inputs `key`, made if needed; other keys' leftovers go.

    The caller removes it (:func:`shutil.rmtree`) when the work is done.
    """
    directory = RESUME / f"{stage}-{fingerprint(key)}"
    for other in RESUME.glob(f"{stage}-*"):
        if other != directory:
            shutil.rmtree(other, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
