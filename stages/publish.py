"""``python -m stages publish DIR``: a trained network as a folder that needs nothing else of its project.

It is laid out like a project, so whatever reads a project's models reads it: ``search --model DIR``, ``encode --model
DIR``, :meth:`stages.encoder.Encoder.load`. Uploaded to the Hugging Face hub as it is, it is ``hf-hub:ORG/NAME``.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from stages.artifacts import CLIP, CONCEPTS, DATASET, HASHNET, METRICS, read_json, replacing_directory
from stages.errors import InputError
from stages.images import read_dataset
from stages.mine.kept import read_kept_concepts

CARD, HUB = "README.md", "hf-hub:"
#: By which a published network is known.
NEEDED = f"{HASHNET.as_posix()}/config.json"


def publish(target: Path) -> None:
    """Copy the network, the pinned CLIP and the concepts of the current directory into `target`, with a model card.

    Raises:
        InputError: `target` is something else already, or an artifact is missing, damaged or of another run.
    """
    from stages.encoder import Encoder

    if target.exists() and not (target.is_dir() and (not any(target.iterdir()) or (target / HASHNET).is_dir())):
        raise InputError(f"{target}: is there already, and no published network; name a new folder")
    if target.exists() and target.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"{target}: holds this project; name a new folder")
    encoder = Encoder.load()  # checks the files, and that they belong together
    kept, *_ = read_kept_concepts(encoder.made_from, HASHNET)
    with replacing_directory(target) as directory:
        for artifact in (HASHNET, CLIP):
            shutil.copytree(artifact, directory / artifact)
        (directory / CONCEPTS).parent.mkdir()
        shutil.copyfile(CONCEPTS, directory / CONCEPTS)
        (directory / CARD).write_text(card(kept), encoding="utf-8")


def published(model: str | Path) -> Path:
    """The folder of a published network: `model` itself, or what ``hf-hub:ORG/NAME`` (or ``...@REVISION``) names.

    Raises:
        InputError, OutsideError: as of :func:`stages.hub.snapshot`, or the repository has no network.
    """
    if not str(model).startswith(HUB):
        return Path(model)
    from stages.hub import Repository, snapshot

    name, _, revision = str(model).removeprefix(HUB).partition("@")
    otherwise = "give the path of a published folder"
    repository = Repository(name, "model", "--model", otherwise, revision or None)

    def parts(names: Iterable[str]) -> list[str]:
        chosen = [file for file in names if Path(file).parent in (HASHNET, CLIP) or Path(file) == CONCEPTS]
        if NEEDED not in chosen:
            raise InputError(f"--model: {repository.page} has no {NEEDED}, so it is no published network; {otherwise}")
        return chosen

    return snapshot(repository, parts).files[NEEDED].parents[len(HASHNET.parts)]


def card(concepts: list[str]) -> str:
    """The model card, from what the artifacts in the current directory say."""
    hashnet, clip = read_json(HASHNET / "config.json"), read_json(CLIP / "config.json")
    dataset = read_dataset() if DATASET.exists() else None
    lines = [
        "---", "library_name: conceptbits", "tags: [image-hashing, image-retrieval]", "---", "",
        f"# {hashnet['bits']}-bit image codes, {hashnet['method']}", "",
        "Images to binary codes whose Hamming distance means semantic likeness.", "",
        "    python -m stages encode --model DIR --folder photos --output codes.parquet", "",
        "| | |", "|---|---|", f"| method | `{hashnet['method']}` |", f"| bits | {hashnet['bits']} |",
        f"| network | {hashnet['network']}: {hashnet['architecture']} |",
        f"| features | {clip['model'] or 'none'}, {clip['pretrained'] or 'no tag'}, SHA-256 `{clip['sha256'][:16]}` |",
        f"| seed | {hashnet['provenance']['params'].get('seed')} |",
    ]  # fmt: skip
    if dataset is not None:
        lines += [f"| trained on | {dataset.name}, {dataset.counts.get('train')} images without their labels |",
                  f"| licence of the images | {dataset.licence} |"]  # fmt: skip
    if METRICS.exists():
        found = read_json(METRICS)
        shown = {name: value for name, value in found.items() if name.startswith("map") and isinstance(value, float)}
        lines += [f"| {name} | {value:.4f} |" for name, value in shown.items()]
    lines += ["", f"Concepts that it was trained with ({len(concepts)}): {', '.join(concepts) or 'none'}.", ""]
    return "\n".join(lines)
