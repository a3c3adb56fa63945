"""A model on this machine to ``models/clip/``: converted, tried, and described."""

import shutil
from pathlib import Path

from stages.artifacts import Provenance, library_versions, sha256, write_json
from stages.clip import OPEN_CLIP_CONFIG, WEIGHTS, ClipConfig, build, write_clip_config
from stages.errors import InputError
from stages.weights import checkpoint, source
from stages.weights.config import Clip


def pin(found: source.Source, clip: Clip, directory: Path) -> None:
    """Write a directory that :func:`stages.clip.load_clip` reads, after having loaded the model from it.

    Raises:
        InputError: weights, architecture and tokenizer do not go together.
    """
    checkpoint.to_safetensors(found.weights, directory / WEIGHTS)
    write_json(directory / OPEN_CLIP_CONFIG, {"model_cfg": found.model_cfg, "preprocess_cfg": found.preprocess_cfg})
    for file in found.tokenizer:
        shutil.copyfile(file, directory / file.name)
    try:
        model, _, _ = build(directory)
    except ValueError as error:
        raise InputError(
            f"{found.weights}: does not load as {clip.model} ({error}); take the architecture that it was trained with"
        ) from None
    checkpoint.require_same_shapes(model, directory / WEIGHTS, found.weights)
    # Once more, with the image size that the architecture has settled.
    final = dict(model.visual.preprocess_cfg)
    write_json(directory / OPEN_CLIP_CONFIG, {"model_cfg": found.model_cfg, "preprocess_cfg": final})
    digest = sha256(directory / WEIGHTS)
    provenance = Provenance(
        stage="weights", model=digest, params=clip.model_dump(), versions=library_versions("open_clip_torch")
    )
    write_clip_config(directory, ClipConfig(
        model=clip.model, pretrained=clip.pretrained, source=found.origin, source_sha256=sha256(found.weights),
        sha256=digest, quick_gelu=bool(found.model_cfg.get("quick_gelu")), dim=found.model_cfg["embed_dim"],
        provenance=provenance,
    ))  # fmt: skip
