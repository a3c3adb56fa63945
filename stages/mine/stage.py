"""Read features and the text tower, write the concepts and each training image's distribution over them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.artifacts import CLIP, CONCEPT_DISTRIBUTION, CONCEPTS, DATASET, FEATURES, Provenance
from stages.clip import load_clip
from stages.device import resolve_device
from stages.errors import InputError
from stages.features import Features
from stages.images import read_dataset
from stages.mine.concepts import are_label_names, concept_frequency, denoise, mine_distribution, read_vocabulary
from stages.mine.config import Params
from stages.tables import fixed_size_lists, write_table


def run(params: Params) -> None:
    """Read ``data/features.h5`` and ``models/clip``, write the two concept tables."""
    options = params.concepts
    words = read_vocabulary(Path(options.vocabulary))
    prompts = [options.prompt.replace("{concept}", word) for word in words]
    dataset = read_dataset()
    clip = load_clip(device=resolve_device(params.device))
    with Features() as features:
        features.provenance.require_same(Provenance("weights", model=clip.sha256), FEATURES, CLIP)
        features.provenance.require_same(dataset.provenance, FEATURES, DATASET)
        provenance = Provenance("mine", features.provenance.dataset, clip.sha256, params=options.model_dump())
        images, train_id = features.train(), features.train_id
    texts = clip.encode_texts(prompts).numpy()

    # What is left out takes no part in anything: it is no top concept and does not count in m.
    dropped = are_label_names(words, dataset.class_names) & options.exclude_label_names
    candidates = np.flatnonzero(~dropped)
    if len(candidates) < 2:
        raise InputError(
            f"concepts.exclude_label_names: without the {dropped.sum()} names of classes, {options.vocabulary} has "
            f"{len(candidates)} concepts; at least 2 are needed"
        )
    frequency, kept = np.zeros(len(words), np.int64), np.zeros(len(words), bool)
    reasons = np.full(len(words), "label name", object)
    frequency[candidates] = concept_frequency(images, texts[candidates])
    kept[candidates], reasons[candidates] = denoise(
        frequency[candidates], len(images), options.min_frequency, options.max_frequency
    )
    table = pa.table({
        "concept": words, "prompt": prompts, "frequency": frequency, "kept": kept, "reason": reasons,
        "text_feature": fixed_size_lists(texts),
    })  # fmt: skip
    write_table(table, CONCEPTS, provenance)

    mined = mine_distribution(images, texts[kept], options.tau)
    rows = pa.table({"id": train_id, "distribution": fixed_size_lists(mined)})
    write_table(rows, CONCEPT_DISTRIBUTION, provenance, {"concepts": list(np.array(words)[kept])})
