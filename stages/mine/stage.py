"""Read features and the text tower, write the concepts and each training image's distribution over them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.artifacts import CLIP, CONCEPT_DISTRIBUTION, CONCEPTS, FEATURES, Provenance
from stages.clip import load_clip
from stages.device import resolve_device
from stages.features import Features
from stages.mine.concepts import concept_frequency, denoise, mine_distribution, read_vocabulary
from stages.mine.config import Params
from stages.tables import fixed_size_lists, write_table


def run(params: Params) -> None:
    """Read ``data/features.h5`` and ``models/clip``, write the two concept tables."""
    options = params.concepts
    words = read_vocabulary(Path(options.vocabulary))
    prompts = [options.prompt.replace("{concept}", word) for word in words]
    clip = load_clip(device=resolve_device(params.device))
    with Features() as features:
        features.provenance.require_same(Provenance("weights", model=clip.sha256), FEATURES, CLIP)
        provenance = Provenance("mine", features.provenance.dataset, clip.sha256, params=options.model_dump())
        images, train_id = features.train(), features.train_id
    texts = clip.encode_texts(prompts).numpy()

    frequency = concept_frequency(images, texts)
    kept, reasons = denoise(frequency, len(images), options.min_frequency, options.max_frequency)
    candidates = pa.table({
        "concept": words, "prompt": prompts, "frequency": frequency, "kept": kept, "reason": reasons,
        "text_feature": fixed_size_lists(texts),
    })  # fmt: skip
    write_table(candidates, CONCEPTS, provenance)

    mined = mine_distribution(images, texts[kept], options.tau)
    rows = pa.table({"id": train_id, "distribution": fixed_size_lists(mined)})
    write_table(rows, CONCEPT_DISTRIBUTION, provenance, {"concepts": list(np.array(words)[kept])})
