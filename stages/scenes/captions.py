"""Captions for scenes: phrases that name all or some of what is shown."""

from collections.abc import Sequence

import numpy as np

BEGINNINGS: tuple[str, ...] = ("a photo of", "a picture of", "an image of")
BEGINNING_CHANCES: tuple[float, ...] = (0.8, 0.1, 0.1)
#: Chance that a caption names only some of the objects, so that prompts of one concept are within its range.
PARTIAL = 0.35
#: How a caption tells the background, and the chance that it does: people caption places too, so that features tell
#: them apart, which is noise to a search for things.
PLACES: dict[str, str] = {
    "sky": "in the sky",
    "sea": "at sea",
    "grass": "on the grass",
    "road": "on the road",
    "sand": "on the sand",
    "snow": "in the snow",
    "night": "at night",
    "indoors": "indoors",
}
PLACE = 0.25
VOWELS = "aeiou"


def name_with_article(rng: np.random.Generator, category: str) -> str:
    """`category` with "the" or the fitting indefinite article, evenly."""
    if rng.random() < 0.5:
        return f"the {category}"
    return f"{'an' if category[0] in VOWELS else 'a'} {category}"


def caption(rng: np.random.Generator, labels: Sequence[str], background: str) -> str:
    """A sentence such as "a photo of a cat, the tree and the moon at night": some of `labels` in random order."""
    named = [labels[i] for i in rng.permutation(len(labels))]
    if len(named) > 1 and rng.random() < PARTIAL:
        named = named[: int(rng.integers(1, len(named)))]
    beginning = BEGINNINGS[int(rng.choice(len(BEGINNINGS), p=BEGINNING_CHANCES))]
    phrases = [name_with_article(rng, name) for name in named]
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    place = f" {PLACES[background]}" if rng.random() < PLACE else ""
    return f"{beginning} {listed}{place}"
