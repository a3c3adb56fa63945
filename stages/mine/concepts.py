"""Concept mining on plain arrays. Source: UHSCM (arXiv 2209.11475), section 3.2."""

from collections.abc import Iterator, Sequence

import numpy as np

from stages.errors import InputError

#: Images scored at a time, so that memory does not grow with their number.
CHUNK = 8192


def ensemble(features: Sequence[np.ndarray]) -> np.ndarray:
    """Text features of several prompt templates as one: the mean of the unit rows, scaled to unit length again.

    Source: the zero-shot evaluation of CLIP (Radford et al., ICML 2021, section 3.1.4).

    Args:
        features: one (m, d) a template, rows of unit length.

    Returns:
        (m, d), rows of unit length; those of a single template as they are.
    """
    if len(features) == 1:
        return features[0]
    mean = np.mean(features, axis=0)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def concept_scores(image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """Cosines s (n, m) of image features (n, d) and text features (m, d) (UHSCM, step 2)."""
    images = image_features / np.linalg.norm(image_features, axis=1, keepdims=True)
    texts = text_features / np.linalg.norm(text_features, axis=1, keepdims=True)
    return images @ texts.T


def concept_distribution(scores: np.ndarray, tau: float) -> np.ndarray:
    """Softmax over concepts of tau * m * s: scores (n, m) to rows that sum to 1 (UHSCM, step 2)."""
    logits = tau * scores.shape[1] * scores
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits, out=logits)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK) for start in range(0, rows, CHUNK))


def concept_frequency(image_features: np.ndarray, text_features: np.ndarray) -> np.ndarray:
    """How many images have each concept as their top one: int64 (m,).

    The softmax keeps the order, so the largest score is the largest probability (UHSCM, step 3).
    """
    m = len(text_features)
    frequency = np.zeros(m, np.int64)
    for rows in _chunks(len(image_features)):
        frequency += np.bincount(concept_scores(image_features[rows], text_features).argmax(axis=1), minlength=m)
    return frequency


def denoise(
    frequency: np.ndarray, n_images: int, low: float | None, high: float | None
) -> tuple[np.ndarray, list[str]]:
    """Keep concept j when low * n / m < frequency_j < high * n (UHSCM, step 3; None switches a bound off).

    Returns:
        kept: bool (m,); reasons: "" or "too rare" or "too frequent", one a concept.

    Raises:
        InputError: no concept is left; says which bound emptied the list.

    >>> denoise(np.array([70, 25, 5]), n_images=100, low=0.5, high=0.5)[1]
    ['too frequent', '', 'too rare']
    """
    m = len(frequency)
    rare = np.zeros(m, bool) if low is None else frequency <= low * n_images / m
    frequent = np.zeros(m, bool) if high is None else frequency >= high * n_images
    kept = ~rare & ~frequent
    if not kept.any():
        bounds = []
        if rare.any():
            bounds.append(f"{rare.sum()} are on top of at most {low} * n / m images (concepts.min_frequency)")
        if frequent.any():
            bounds.append(f"{frequent.sum()} on top of at least {high} * n images (concepts.max_frequency)")
        raise InputError(
            f"no concept kept: of m = {m} for n = {n_images} training images, {' and '.join(bounds)}; "
            "loosen that bound or use another vocabulary"
        )
    return kept, ["too rare" if r else "too frequent" if f else "" for r, f in zip(rare, frequent, strict=True)]


def choose(
    image_features: np.ndarray, text_features: np.ndarray, left_out: np.ndarray, low: float | None, high: float | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Denoise the concepts but those `left_out`, bool (m,), which are no top concepts and do not count in m.

    Returns:
        frequency: int64 (m,), kept: bool (m,), reasons: as of :func:`denoise`, and "label name" for what is left out.

    Raises:
        InputError: no concept is left.
    """
    frequency, kept = np.zeros(len(left_out), np.int64), np.zeros(len(left_out), bool)
    reasons = np.full(len(left_out), "label name", object)
    candidates = np.flatnonzero(~left_out)
    frequency[candidates] = concept_frequency(image_features, text_features[candidates])
    kept[candidates], reasons[candidates] = denoise(frequency[candidates], len(image_features), low, high)
    return frequency, kept, reasons.tolist()


def mine_distribution(image_features: np.ndarray, text_features: np.ndarray, tau: float) -> np.ndarray:
    """Each image's distribution over the kept concepts: float32 (n, m') (UHSCM, step 4)."""
    mined = np.empty((len(image_features), len(text_features)), np.float32)
    for rows in _chunks(len(image_features)):
        mined[rows] = concept_distribution(concept_scores(image_features[rows], text_features), tau)
    return mined
