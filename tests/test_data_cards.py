"""The documentation of the data says what the code does: cards, commands, digests, protocols, vocabularies, links."""

import importlib
import pkgutil
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import get_args

import pytest
import yaml
from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides

from stages import params
from stages.__main__ import STAGES
from stages.download import datasets
from stages.download.config import DatasetName, DatasetOptions, Params
from stages.download.datasets import cifar, coco, fashion_mnist, mirflickr25k, nuswide
from stages.download.fetch import Published
from stages.download.protocols import PROTOCOLS
from stages.mine.leakage import label_matches
from stages.mine.vocabulary import read_vocabulary
from stages.scenes.catalogue import SHOWN

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
CARDS = DOCS / "data"
VOCABULARIES = ROOT / "stages" / "mine" / "vocabularies"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

NAMES = get_args(DatasetName)
HEADINGS = [
    "Command", "Source", "Licence", "Size", "Digests", "Splits and protocol", "Labels", "Known faults", "Citation",
]  # fmt: skip

COCO_CATEGORIES = tuple(read_vocabulary(VOCABULARIES / "coco80.txt").words)
READ_FROM_A_PATH = {"nuswide", "imagefolder", "parquet", "webdataset", "csv", "embeddings"}

#: Class names by data set; those of MS-COCO come with its annotations.
CLASSES: Mapping[str, tuple[str, ...]] = {
    "scenes": SHOWN,
    "cifar10": cifar.CLASSES10,
    "cifar100": cifar.CLASSES100,
    "fashion_mnist": fashion_mnist.CLASSES,
    "mirflickr25k": mirflickr25k.LABELS[24],
    "nuswide": nuswide.LABELS[21],
    "coco2014": COCO_CATEGORIES,
    "coco2017": COCO_CATEGORIES,
}

#: The files of each data set that somebody publishes.
PUBLISHED: Mapping[str, tuple[Published, ...]] = {
    "cifar10": (cifar.CIFAR10,),
    "cifar100": (cifar.CIFAR100,),
    "fashion_mnist": tuple(fashion_mnist.FILES.values()),
    "mirflickr25k": (mirflickr25k.IMAGES, mirflickr25k.ANNOTATIONS),
    "coco2014": tuple(file for path, file in coco.FILES.items() if "2014" in path),
    "coco2017": tuple(file for path, file in coco.FILES.items() if "2017" in path),
}

every_card = pytest.mark.parametrize("name", NAMES)
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def card(name: str) -> str:
    return (CARDS / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    return re.split(r"^## .*\n", text.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, without the marks of code and the lines below the headers."""
    lines = (line for line in text.splitlines() if line.startswith("|") and not line.startswith("|---"))
    return [[cell.strip().replace("`", "") for cell in line.strip("|").split("|")] for line in lines]


def commands(text: str) -> list[list[str]]:
    """The words of each ``dvc exp run`` in an indented block, but for sweeps, which DVC takes apart."""
    joined = re.sub(r"\\\n\s+", "", text)
    found = [shlex.split(line, comments=True) for line in joined.splitlines() if line.startswith("    dvc exp run ")]
    return [command for command in found if "--queue" not in command]


def overrides(command: list[str]) -> list[str]:
    """The KEY=VALUE of each ``-S``, which is all that may be there."""
    flags, values = command[3::2], command[4::2]
    assert values and flags == ["-S"] * len(values), command
    return values


def changed_params(values: list[str], directory: Path) -> dict:
    """``params.yaml`` as DVC changes it; DVC refuses keys that are not there."""
    shutil.copy(ROOT / "params.yaml", directory)
    apply_overrides(directory / "params.yaml", values)
    return params.read_params_file(directory / "params.yaml")


def require_parse(changed: dict) -> None:
    """Every stage takes the parameters, and the vocabulary is there unless it is the reader's own."""
    for stage in STAGES:
        params.parse(importlib.import_module(f"stages.{stage}.config").Params, changed)
    vocabulary = changed["concepts"]["vocabulary"]
    assert vocabulary.startswith("/path/to/") or (ROOT / vocabulary).is_file(), vocabulary


# ---- cards


def test_every_data_set_has_a_card_and_every_card_a_data_set() -> None:
    assert {path.stem for path in CARDS.glob("*.md")} == {*NAMES, "README"}


@every_card
def test_a_card_has_the_headings_in_order_and_something_under_each(name: str) -> None:
    title, _, says = card(name).partition("\n\n")
    assert title.startswith("# ") and title.endswith(f"(`{name}`)")
    assert re.match(r"[A-Z0-9]", says) and says.partition("\n\n")[0].endswith(".")
    assert re.findall(r"^## (.*)$", card(name), re.MULTILINE) == HEADINGS
    for heading in HEADINGS:
        assert section(card(name), heading).strip(), heading


@every_card
def test_the_command_of_a_card_names_the_data_set_and_parses(name: str, tmp_path: Path) -> None:
    (command,) = commands(section(card(name), "Command"))
    changed = changed_params(overrides(command), tmp_path)
    options = params.parse(Params, changed).dataset
    assert options.name == name
    assert (options.path is not None) == (name in READ_FROM_A_PATH)
    require_parse(changed)


@every_page
def test_every_command_of_a_page_parses(page: Path, tmp_path: Path) -> None:
    for command in commands(page.read_text(encoding="utf-8")):
        require_parse(changed_params(overrides(command), tmp_path))


@pytest.mark.parametrize("key", ["dataset.nmae=cifar10", "data.path=/path/to/images"])
def test_a_command_with_an_unknown_key_does_not_parse(key: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        changed_params([key], tmp_path)


@pytest.mark.parametrize("block", ["dataset", "concepts"])
def test_blocks_of_yaml_parse(block: str) -> None:
    """Sections of ``params.yaml`` that a page shows."""
    pages = [DOCS / "downloads.md", DOCS / "vocabularies.md"]
    blocks = re.findall(rf"^    {block}:\n(?:     .*\n)+", "".join(map(Path.read_text, pages)), re.MULTILINE)
    assert len(blocks) == 1
    shown = yaml.safe_load(blocks[0])[block]
    changed = params.read_params_file(ROOT / "params.yaml")
    assert shown.keys() <= changed[block].keys()
    changed[block] |= shown
    require_parse(changed)


def test_the_index_has_every_card() -> None:
    table = rows((CARDS / "README.md").read_text(encoding="utf-8"))
    listed = [match[1] for match in (re.match(r"\[(\w+)\]\(\1\.md\)$", row[0]) for row in table) if match]
    assert sorted(listed) == sorted(NAMES)


# ---- published files


def published(values: Iterable[object]) -> set[Published]:
    """The published files among `values` and in mappings among them."""
    values = [inner for value in values for inner in (value.values() if isinstance(value, dict) else [value])]
    return {value for value in values if isinstance(value, Published)}


def test_every_published_file_is_known_here() -> None:
    modules = (importlib.import_module(f"{datasets.__name__}.{info.name}")
               for info in pkgutil.iter_modules(datasets.__path__))  # fmt: skip
    found = set().union(*(published(vars(module).values()) for module in modules))
    assert found == {file for files in PUBLISHED.values() for file in files}


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in PUBLISHED.items() for file in files],
                         ids=lambda value: value.name if isinstance(value, Published) else None)  # fmt: skip
def test_a_card_has_urls_digest_and_size_of_every_file(name: str, file: Published) -> None:
    for url in file.urls:
        assert f"`{url}`" in section(card(name), "Source")
    said = {row[0]: " ".join(row[1:]) for row in rows(section(card(name), "Digests"))}
    bytes_said = {row[0]: row[1] for row in rows(section(card(name), "Size"))}
    if file.digest:
        assert file.digest.partition(":")[2] in said[file.name]
        assert bytes_said[file.name] == f"{file.max_bytes:,}"
    else:
        assert said[file.name] == "nobody publishes one"
        assert f"up to {file.max_bytes // 2**20} MiB" in bytes_said[file.name]


@pytest.mark.parametrize(("name", "classes"), [*CLASSES.items(), ("mirflickr25k", mirflickr25k.LABELS[38])])
def test_a_card_has_the_names_of_the_classes(name: str, classes: tuple[str, ...]) -> None:
    if classes == COCO_CATEGORIES:
        assert "vocabularies/coco80.txt" in section(card(name), "Labels")
    else:
        assert set(re.findall(r"`([^`.:]+)`", section(card(name), "Labels"))) >= set(classes)
        assert str(len(classes)) in section(card(name), "Labels")


# ---- protocols


def test_every_protocol_is_in_the_docs() -> None:
    listed = [row[0] for row in rows((DOCS / "protocols.md").read_text(encoding="utf-8"))]
    assert sorted(listed) == sorted(["dataset.protocol", *PROTOCOLS, "auto"])


@every_card
def test_a_card_names_the_protocols_of_its_data_set(name: str) -> None:
    said = section(card(name), "Splits and protocol")
    family = "coco" if name in ("coco2014", "coco2017") else name
    own = [protocol for protocol in PROTOCOLS if protocol.split("-")[0] == family]
    for protocol in own or ["official"]:
        assert f"`{protocol}`" in said
    assert "`holdout`" in said or own or name in PUBLISHED
    assert "(../protocols.md)" in said


@pytest.mark.parametrize("labels", get_args(get_args(DatasetOptions.model_fields["labels"].annotation)[0]))
def test_every_label_set_is_in_a_card(labels: int) -> None:
    name = "nuswide" if labels in nuswide.LABELS else "mirflickr25k"
    assert re.search(rf"\b{labels}\b", section(card(name), "Labels"))


# ---- vocabularies


def test_every_vocabulary_is_in_the_docs_with_its_size_and_overlaps() -> None:
    page = (DOCS / "vocabularies.md").read_text(encoding="utf-8")
    words = {path.name: read_vocabulary(path).words for path in VOCABULARIES.glob("*.txt")}
    table = rows(page)
    sizes = {row[0]: row[1] for row in table if len(row) == 3 and row[0].endswith(".txt")}
    assert sizes == {name: f"{len(concepts):,}" for name, concepts in words.items()}
    header = next(row for row in table if row[0] == "vocabulary")
    names = [re.split(r"[ ,]", title)[0] for title in header[1:]]
    assert names == [name for name in CLASSES if name != "coco2017"]
    overlaps = {row[0]: list(map(int, row[1:])) for row in table if len(row) == len(header) and row[0].endswith(".txt")}
    assert overlaps == {
        vocabulary: [sum(map(bool, label_matches(concepts, CLASSES[name]))) for name in names]
        for vocabulary, concepts in words.items()
    }


# ---- all pages


@every_page
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for target in targets:
        if not re.match(r"[a-z]+:", target):
            file = page.parent / target.partition("#")[0]
            assert file.exists(), target


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_lines_are_no_longer_than_those_of_the_code(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
