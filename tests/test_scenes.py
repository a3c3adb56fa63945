"""The embedded data set: its scenes, their captions and the model that knows them."""

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stages.scenes.captions import BEGINNINGS, PLACES, caption
from stages.scenes.catalogue import BACKGROUNDS, CATEGORIES, GROUPS, HOMES, PAIRS, SHOWN, group_of
from stages.scenes.model import WEIGHTS, load_clip
from stages.scenes.render import SIZE, Scene, render_scene
from stages.scenes.train_clip import Pairs, export, used_tokens
from stages.scenes.zero_shot import measure

SEED = 11
COUNT = 2500


@cache
def scenes() -> tuple[Scene, ...]:
    """A sample of the data set, rendered once."""
    return tuple(render_scene(SEED, index) for index in range(COUNT))


@cache
def trained() -> tuple[Any, Any, Any]:
    return load_clip()


def test_the_catalogue_is_consistent() -> None:
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 28
    assert len(SHOWN) == 20
    assert set(SHOWN) <= set(CATEGORIES) == set(HOMES)
    assert {background for homes in HOMES.values() for background in homes} == set(BACKGROUNDS)
    assert all(len(pair) == 2 and pair <= set(CATEGORIES) for pair in PAIRS)
    assert Counter(group_of(name) for name in SHOWN) == {group: 5 for group in GROUPS}


def test_an_image_depends_on_its_seed_and_index_alone() -> None:
    forward = [render_scene(3, index) for index in range(8)]
    backward = [render_scene(3, index) for index in reversed(range(8))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert one.pixels.tobytes() == other.pixels.tobytes()
        assert (one.labels, one.background) == (other.labels, other.background)
    assert len({scene.pixels.tobytes() for scene in forward}) == 8
    assert render_scene(4, 0).pixels.tobytes() != forward[0].pixels.tobytes()


def test_pixels_and_labels_have_the_promised_form() -> None:
    for scene in scenes():
        assert scene.pixels.shape == (SIZE, SIZE, 3)
        assert scene.pixels.dtype == np.uint8
        assert 1 <= len(scene.labels) == len(set(scene.labels)) <= 3
        assert set(scene.labels) <= set(SHOWN)
        assert scene.background in BACKGROUNDS
    assert Counter(len(scene.labels) for scene in scenes()).keys() == {1, 2, 3}


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_can_be_drawn(category: str) -> None:
    drawn = [render_scene(SEED, index, (category,)) for index in range(4)]
    assert all(scene.labels == (category,) for scene in drawn)


def test_an_object_changes_the_picture_visibly() -> None:
    """The same stream up to the drawing, so what differs is the object: at least a twentieth of the pixels."""
    for category in CATEGORIES:
        other = "star" if category != "star" else "sun"
        pixels = [render_scene(SEED, 5, (name,)).pixels.astype(int) for name in (category, other)]
        assert (np.abs(pixels[0] - pixels[1]).max(axis=2) > 30).mean() > 0.05, category


def test_every_shown_category_is_met_about_evenly() -> None:
    counts = Counter(name for scene in scenes() for name in scene.labels)
    for name in SHOWN:
        assert 0.05 < counts[name] / COUNT < 0.16, name


def test_things_are_met_where_they_belong_but_not_only_there() -> None:
    everywhere = Counter(scene.background for scene in scenes())
    together = Counter((name, scene.background) for scene in scenes() for name in scene.labels)
    for name in SHOWN:
        home = sum(together[name, background] for background in HOMES[name])
        away = sum(together[name, background] for background in BACKGROUNDS) - home
        room = sum(everywhere[background] for background in HOMES[name])
        assert home / room > 2.0 * away / (COUNT - room), name
        assert away > 0, name
    at_sea = [scene for scene in scenes() if scene.background == "sea"]
    fish = sum("fish" in scene.labels for scene in scenes()) / COUNT
    assert sum("fish" in scene.labels for scene in at_sea) / len(at_sea) > 3.0 * fish


def test_the_background_alone_never_decides() -> None:
    for background in BACKGROUNDS:
        there = [scene for scene in scenes() if scene.background == background]
        counts = Counter(name for scene in there for name in scene.labels)
        assert len(counts) >= 15, background
        assert counts.most_common(1)[0][1] / len(there) < 0.5, background


def test_a_caption_names_only_what_the_scene_shows() -> None:
    partial = placed = 0
    for index, scene in enumerate(scenes()[:1000]):
        text = caption(np.random.default_rng(index), scene.labels, scene.background)
        place = f" {PLACES[scene.background]}"
        placed += text.endswith(place)
        text = text.removesuffix(place)
        beginning = next(start for start in BEGINNINGS if text.startswith(f"{start} "))
        rest = text.removeprefix(beginning)
        for article in (" the ", " an ", " a ", " and "):
            rest = rest.replace(article, "  ")
        named = rest.replace(",", " ").split()
        assert named
        assert set(named) <= set(scene.labels)
        assert len(named) == len(set(named))
        partial += len(named) < len(scene.labels)
    assert 100 < partial < 500
    assert 150 < placed < 350


def test_captions_are_grammatical() -> None:
    rng = np.random.default_rng(0)
    texts = [caption(rng, ("airplane", "cat", "umbrella"), "night") for _ in range(200)]
    assert not any(" a airplane" in text or " a umbrella" in text or " an cat" in text for text in texts)
    assert any(text.count(",") == 1 and text.count(" and ") == 1 for text in texts)
    assert sum(text.startswith("a photo of") for text in texts) > 120


def test_training_batches_can_be_made_alone() -> None:
    _, preprocess, tokenizer = trained()
    later = next(iter(Pairs(0, 1, 2, preprocess, tokenizer)))
    both = list(Pairs(0, 0, 2, preprocess, tokenizer))
    for one, other in zip(later, both[1], strict=True):
        assert torch.equal(one, other)
    images, tokens, which = later
    assert images.shape == (len(which), 3, SIZE, SIZE)
    assert 0 <= int(which.min()) <= int(which.max()) == len(tokens) - 1


def test_training_images_are_what_the_transform_yields() -> None:
    _, preprocess, tokenizer = trained()
    pairs = Pairs(0, 0, 1, preprocess, tokenizer)
    images, _, _ = next(iter(pairs))
    alone = preprocess(Image.fromarray(render_scene(pairs.seed, 0, CATEGORIES).pixels))
    torch.testing.assert_close(images[0], alone)


def test_the_end_token_stays_the_largest() -> None:
    """The text tower pools at the largest id; zeroed rows must not include one a prompt needs."""
    _, _, tokenizer = trained()
    tokens = tokenizer([f"a photo of the {name}" for name in CATEGORIES])
    assert (tokens.max(dim=1).values == 49407).all()
    assert set(tokens.unique().tolist()) <= set(used_tokens(tokenizer).tolist())


def test_export_keeps_the_answers(tmp_path: Any) -> None:
    model, _, tokenizer = trained()
    export(model, tokenizer, tmp_path / "again.safetensors")
    again, _, _ = load_clip(tmp_path / "again.safetensors")
    tokens = tokenizer([f"a photo of the {name}" for name in CATEGORIES])
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens), again.encode_text(tokens))


def test_the_model_is_small_enough_to_lie_in_the_repository() -> None:
    assert WEIGHTS.stat().st_size < 10_000_000


@pytest.mark.slow
@pytest.mark.parametrize("categories", [CATEGORIES, SHOWN], ids=["all", "shown"])
def test_the_model_knows_the_scenes(categories: tuple[str, ...]) -> None:
    found = measure(*trained(), count=1500, categories=categories)
    assert found.top1 >= 0.90
    assert found.map_cosine >= 0.80
