"""What a scene can show, and which things tend to be seen together.

Two levels of likeness are built in: the categories, and the four groups they belong to. Backgrounds and pairs raise the
chance of a category without ever deciding it: every category has a positive weight on every background.
"""

GROUPS: dict[str, tuple[str, ...]] = {
    "animals": ("dog", "cat", "bird", "fish", "horse", "butterfly", "snail"),
    "vehicles": ("car", "bus", "bicycle", "boat", "airplane", "truck", "train"),
    "nature": ("sun", "moon", "cloud", "tree", "flower", "star", "mountain"),
    "things": ("house", "umbrella", "ball", "clock", "cup", "book", "chair"),
}

CATEGORIES: tuple[str, ...] = tuple(name for members in GROUPS.values() for name in members)

#: The categories the data set contains; the others are known concepts that no image of it shows.
SHOWN: tuple[str, ...] = tuple(name for members in GROUPS.values() for name in members[:5])

BACKGROUNDS: tuple[str, ...] = ("sky", "sea", "grass", "road", "sand", "snow", "night", "indoors")

#: Where a category is usual; elsewhere it is met with weight 1 against USUAL.
HOMES: dict[str, tuple[str, ...]] = {
    "dog": ("grass", "indoors", "sand", "snow"),
    "cat": ("indoors", "grass", "road"),
    "bird": ("sky", "sea", "snow"),
    "fish": ("sea",),
    "horse": ("grass", "sand", "snow"),
    "butterfly": ("grass", "sky"),
    "snail": ("grass", "sand"),
    "car": ("road", "night", "snow"),
    "bus": ("road", "night"),
    "bicycle": ("road", "grass", "sand"),
    "boat": ("sea",),
    "airplane": ("sky", "night"),
    "truck": ("road", "sand"),
    "train": ("road", "snow", "night"),
    "sun": ("sky", "sea", "sand"),
    "moon": ("night",),
    "cloud": ("sky", "sea", "grass"),
    "tree": ("grass", "snow", "road"),
    "flower": ("grass", "indoors"),
    "star": ("night",),
    "mountain": ("snow", "sky"),
    "house": ("grass", "snow", "night", "road"),
    "umbrella": ("sand", "road"),
    "ball": ("grass", "sand", "indoors"),
    "clock": ("indoors",),
    "cup": ("indoors",),
    "book": ("indoors",),
    "chair": ("indoors", "sand"),
}
USUAL = 7.0

#: Pairs that are seen together more often than their backgrounds alone would make them.
PAIRS: frozenset[frozenset[str]] = frozenset(
    frozenset(pair)
    for pair in (
        ("dog", "ball"),
        ("dog", "cat"),
        ("cat", "chair"),
        ("bird", "tree"),
        ("bird", "cloud"),
        ("fish", "boat"),
        ("horse", "tree"),
        ("butterfly", "flower"),
        ("snail", "flower"),
        ("car", "house"),
        ("car", "bus"),
        ("bus", "bicycle"),
        ("truck", "car"),
        ("train", "mountain"),
        ("boat", "sun"),
        ("airplane", "cloud"),
        ("sun", "cloud"),
        ("sun", "umbrella"),
        ("moon", "star"),
        ("moon", "house"),
        ("tree", "house"),
        ("clock", "cup"),
        ("book", "cup"),
        ("clock", "book"),
        ("umbrella", "ball"),
        ("flower", "cup"),
    )
)
PAIRED = 2.5


def background_weight(category: str, background: str) -> float:
    """How strongly `category` and `background` go together, 1 being the leakage every combination has."""
    return USUAL if background in HOMES[category] else 1.0


def partner_weight(category: str, other: str) -> float:
    """How strongly the presence of `other` raises the chance of `category`."""
    return PAIRED if frozenset((category, other)) in PAIRS else 1.0


def group_of(category: str) -> str:
    """The group `category` belongs to."""
    return next(group for group, members in GROUPS.items() if category in members)
