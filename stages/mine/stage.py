"""Read features and the text tower, write the concepts and each training image's distribution over them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.artifacts import CLIP, CONCEPT_DISTRIBUTION, CONCEPTS, DATASET, FEATURES, Provenance
from stages.clip import load_clip, read_clip_config
from stages.errors import InputError
from stages.features import Features
from stages.images import read_dataset
from stages.mine.concepts import choose, ensemble, mine_distribution
from stages.mine.config import Params
from stages.mine.leakage import label_matches
from stages.mine.vocabulary import Vocabulary, read_vocabulary
from stages.tables import fixed_size_lists, write_table

#: Said where there are images alone.
NO_TEXT_SIDE = (
    f"{CLIP} has no model and concepts.vocabulary no text features: no concepts. method: fused and dsch need none; "
    "uhscm needs clip.model, or a Parquet vocabulary with the column text_feature"
)


def run(params: Params) -> None:
    """Read ``data/features.h5`` and ``models/clip``, write the two concept tables."""
    options, path = params.concepts, Path(params.concepts.vocabulary)
    vocabulary = read_vocabulary(path)
    dataset, clip = read_dataset(), read_clip_config()
    with Features() as features:
        made_from = features.provenance
        made_from.require_same(Provenance("weights", model=clip.sha256), FEATURES, CLIP)
        made_from.require_same(dataset.provenance, FEATURES, DATASET)
        Provenance("mine", model=vocabulary.model).require_same(made_from, path, FEATURES)
        images, train_id = features.train(), features.train_id
    provenance = Provenance("mine", made_from.dataset, made_from.model, params=options.model_dump(mode="json"))

    words, prompts = vocabulary.words, [""] * len(vocabulary.words)
    if vocabulary.text_features is not None:
        texts = vocabulary.text_features
    elif clip.model is None:
        print(f"mine: {NO_TEXT_SIDE}")
        words, prompts, texts = [], [], np.empty((0, images.shape[1]), np.float32)
    else:
        prompts, texts = encode(vocabulary, options.prompt, params)
    if texts.shape[1] != images.shape[1]:
        raise InputError(
            f"concepts.vocabulary: {path} has text features of {texts.shape[1]} dimensions, {FEATURES} image features "
            f"of {images.shape[1]}; both must come from one model"
        )

    left_out = np.zeros(len(words), bool)
    if options.exclude_label_names:
        left_out[:] = [bool(labels) for labels in label_matches(words, dataset.class_names)]
    if words and len(words) - left_out.sum() < 2:
        raise InputError(
            f"concepts.exclude_label_names: without the {left_out.sum()} names of classes, {path} has "
            f"{len(words) - left_out.sum()} concepts; at least 2 are needed"
        )
    frequency, kept, reasons = np.zeros(0, np.int64), np.zeros(0, bool), []
    mined = np.empty((len(images), 0), np.float32)
    if words:
        frequency, kept, reasons = choose(images, texts, left_out, options.min_frequency, options.max_frequency)
        mined = mine_distribution(images, texts[kept], options.tau)
    table = pa.table({
        "concept": pa.array(words, pa.string()), "prompt": pa.array(prompts, pa.string()), "frequency": frequency,
        "kept": kept, "reason": pa.array(reasons, pa.string()), "text_feature": fixed_size_lists(texts),
    })  # fmt: skip
    write_table(table, CONCEPTS, provenance)
    rows = pa.table({"id": train_id, "distribution": fixed_size_lists(mined)})
    names = [word for word, keep in zip(words, kept, strict=True) if keep]
    write_table(rows, CONCEPT_DISTRIBUTION, provenance, {"concepts": names})


def encode(vocabulary: Vocabulary, prompt: str | tuple[str, ...], params: Params) -> tuple[list[str], np.ndarray]:
    """What each concept was prompted with (several prompts joined by " | "), and its text feature: (m, d)."""
    from stages.device import resolve_device  # imports torch, which text features at hand do without

    templates = [prompt] if isinstance(prompt, str) else prompt
    clip = load_clip(device=resolve_device(params.device))
    filled = [[template.replace("{concept}", word) for word in vocabulary.words] for template in templates]
    texts = ensemble([clip.encode_texts(prompts).numpy() for prompts in filled])
    return [" | ".join(prompts) for prompts in zip(*filled, strict=True)], texts
