"""The evaluation stage on a tiny run: metrics, curves, pictures, and what it refuses."""

import csv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from small_run import CLASSES, write_small_run

from stages.artifacts import (
    BASELINES,
    CODES,
    COMPONENTS,
    CONCEPTS,
    DATASET,
    METRICS,
    PRECISION_AT_N,
    PRECISION_RECALL,
    QUERY_PRECISION,
    Provenance,
    read_json,
    write_json,
)
from stages.baselines.config import Params as BaselinesParams
from stages.baselines.stage import run as run_baselines
from stages.codes import read_codes
from stages.components.artifact import Components
from stages.errors import InputError
from stages.evaluate import pictures, plots
from stages.evaluate.config import Params
from stages.evaluate.examples import evenly_spaced, example_queries, largest_groups
from stages.evaluate.inputs import Concepts
from stages.evaluate.reports import NO_LABELS, read_query_precision, read_report
from stages.evaluate.stage import run
from stages.images import ImageShards

PICTURES = ("retrieval", "precision_recall", "precision_at_n", "concepts", "components")
EVALUATE = {"evaluate": {"precision_at": [1, 10]}}


@pytest.fixture
def small_run(tmp_path, monkeypatch, request):
    """The current directory holds a tiny run with its baselines; ``param``: keywords of `write_small_run`."""
    monkeypatch.chdir(tmp_path)
    write_small_run(**getattr(request, "param", {}))
    run_baselines(BaselinesParams.model_validate({"bits": 16, "seed": 0, **EVALUATE}))


def evaluate():
    run(Params.model_validate(EVALUATE))


def assert_pictures():
    for name in PICTURES:
        with Image.open(f"reports/{name}.png") as picture:
            assert min(picture.size) > 150
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20, f"{name}.png is blank"


def test_stage_writes_everything(small_run):
    evaluate()
    content, provenance = read_report(METRICS)
    assert provenance.params == {
        "method": "fused", "bits": 16, "dataset": "tiny", "protocol": "tiny-protocol", "precision_at": [1, 10],
    }  # fmt: skip
    assert content.pop("overlapping_concepts") == ["Cat", "dog"]
    assert (content.pop("protocol"), content.pop("splits")) == ("tiny-protocol", "5" * 16)
    assert content.pop("guidance") == "the data set's own names"
    assert content == {
        key: pytest.approx(content[key]) for key in (
            "map_at_10_stable", "map_at_50_stable", "map_all_stable",
            "map_at_10_tie_aware", "map_at_50_tie_aware", "map_all_tie_aware",
            "precision_at_1", "precision_at_10", "precision_hamming2",
            "bit_balance", "bit_correlation", "dead_bits", "distinct_codes",
            "queries", "database", "near_duplicates", "concepts_overlapping_labels", "labels_named_by_concepts",
        )
    }  # fmt: skip
    assert (content["queries"], content["database"], content["near_duplicates"]) == (20, 100, 0)
    assert (content["concepts_overlapping_labels"], content["labels_named_by_concepts"]) == (2, 2)
    with open(PRECISION_RECALL) as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["radius", "recall", "precision"]
    assert float(table[-1]["recall"]) == 1
    with open(PRECISION_AT_N) as file:
        table = list(csv.DictReader(file))
    assert (table[0]["n"], table[-1]["n"]) == ("1", "100")
    assert float(table[0]["precision"]) == pytest.approx(content["precision_at_1"])
    ids, precision, made = read_query_precision(["10", "50", "all"])
    assert ids.tolist() == read_codes().query_id.tolist() and made == provenance
    means = [precision["10"].mean(), precision["50"].mean(), precision["all"].mean()]
    assert means == pytest.approx([content[f"map_{name}_tie_aware"] for name in ("at_10", "at_50", "all")])
    assert_pictures()


def test_overlap_is_told_where_it_guides(small_run, capsys):
    capsys.readouterr()
    evaluate()
    assert capsys.readouterr().out == (
        "evaluate: 2 of the 3 concepts are names of the data set's own classes; concepts.exclude_label_names: true "
        "leaves them out\n"
    )


@pytest.mark.parametrize("small_run", [{"method": "dsch"}], indirect=True)
def test_a_method_without_texts_is_not_guided_by_them(small_run, capsys):
    capsys.readouterr()
    evaluate()
    assert capsys.readouterr().out == ""
    content, _ = read_report(METRICS)
    assert (content["guidance"], content["concepts_overlapping_labels"]) == ("images alone", 2)


def test_overlap_is_found_as_mining_finds_it(small_run):
    """But for upper and lower case, separators and numbers; two classes may have one name."""
    dataset = read_json(DATASET)
    write_json(DATASET, dataset | {"class_names": ["cats", "hot_dog", "CAT"], "near_duplicates": None})
    evaluate()
    content, _ = read_report(METRICS)
    assert content["overlapping_concepts"] == ["Cat (label cats, CAT)"]
    assert (content["concepts_overlapping_labels"], content["labels_named_by_concepts"]) == (1, 2)
    assert content["near_duplicates"] is None
    write_json(DATASET, dataset | {"class_names": ["wheel", "skies", "mouse"]})  # neither of the two was kept
    evaluate()
    content, _ = read_report(METRICS)
    assert (content["overlapping_concepts"], content["guidance"]) == ([], "general vocabulary")


@pytest.mark.parametrize("small_run", [{"text_side": False, "pixels": False, "method": "dsch"}], indirect=True)
def test_features_alone(small_run):
    """Neither concepts nor pixels: of both there is a picture that says so."""
    evaluate()
    content, _ = read_report(METRICS)
    assert content["map_all_stable"] > 0
    assert (content["guidance"], content["overlapping_concepts"]) == ("images alone", [])
    for name in PICTURES:
        with Image.open(f"reports/{name}.png") as picture:
            assert min(picture.size) > 150 and len(picture.convert("RGB").getcolors(1 << 24)) > 20


@pytest.mark.parametrize("small_run", [{"labelled": False}], indirect=True)
def test_without_labels_only_what_needs_none(small_run, capsys):
    capsys.readouterr()
    evaluate()
    assert capsys.readouterr().out == f"evaluate: {NO_LABELS}\n"
    content, _ = read_report(METRICS)
    assert (content["labels"], content["note"]) == (False, NO_LABELS)
    assert not [key for key in content if key.startswith(("map", "precision"))]
    assert content["distinct_codes"] > 1
    assert (content["guidance"], content["labels_named_by_concepts"]) == ("general vocabulary", 0)
    assert PRECISION_RECALL.read_text() == "radius,recall,precision\n"
    assert PRECISION_AT_N.read_text() == "n,precision\n"
    assert_pictures()


def test_the_columns_of_exp_show_are_numbers(small_run):
    """``dvc exp show`` has a column for every number, string and value of a nested mapping, but none for a list."""
    evaluate()
    columns = {key: value for key, value in read_json(METRICS).items() if not isinstance(value, list)}
    assert "map_at_10_stable" in columns
    texts = {key for key, value in columns.items() if not isinstance(value, int | float)}
    assert texts == {"protocol", "splits", "guidance"}


def test_running_again_gives_the_same_bytes(small_run):
    evaluate()
    files = [METRICS, PRECISION_RECALL, PRECISION_AT_N, QUERY_PRECISION]
    files += [METRICS.parent / f"{name}.png" for name in PICTURES]
    before = [file.read_bytes() for file in files]
    evaluate()
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (CODES, r"data/codes\.h5: .*dvc repro encode"),
        (CONCEPTS, r"data/concepts\.parquet: .*dvc repro mine"),
        (COMPONENTS, r"data/components\.h5: .*dvc repro components"),
        (BASELINES, r"reports/baselines\.json: .*dvc repro baselines"),
    ],
)
@pytest.mark.parametrize("harm", ["missing", "truncated"])
def test_missing_or_damaged_input_is_one_clear_line(small_run, path, message, harm):
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=message) as error:
        evaluate()
    assert "\n" not in str(error.value)
    assert not METRICS.exists()


def test_codes_of_another_data_set_are_refused(small_run):
    write_json(DATASET, read_json(DATASET) | {"digest": "f" * 64})
    with pytest.raises(InputError, match="made with another data set"):
        evaluate()


def test_baselines_of_other_bits_are_refused(small_run):
    run_baselines(BaselinesParams.model_validate({"bits": 32, "seed": 0, **EVALUATE}))
    with pytest.raises(InputError, match=r"measured at 32 bits, while data/codes\.h5 has 16; .*dvc repro baselines"):
        evaluate()


@pytest.mark.parametrize("small_run", [{"n": 12, "queries": 1}], indirect=True)
def test_fewer_images_than_a_sheet_has_places(small_run):
    evaluate()
    assert_pictures()


def test_examples_are_the_nearest_images_with_their_distances(small_run):
    codes, labels = read_codes(), ImageShards().labels(len(CLASSES))
    examples = example_queries(codes, labels, CLASSES, evenly_spaced(len(codes.query), 3), neighbours=5)
    assert [example.query for example in examples] == [codes.query_id[i] for i in (0, 10, 19)]
    for example in examples:
        query = codes.query[np.flatnonzero(codes.query_id == example.query)[0]]
        distances = np.unpackbits(codes.database ^ query, axis=1).sum(axis=1)
        assert [n.distance for n in example.neighbours] == np.sort(distances)[:5].tolist()
        for neighbour in example.neighbours:
            assert neighbour.distance == distances[codes.database_id == neighbour.image][0]
            assert neighbour.hit == bool(np.any(labels[neighbour.image] & labels[example.query]))
        assert example.caption == ", ".join(np.array(CLASSES)[labels[example.query]])


def test_largest_groups_and_their_most_typical_images():
    components = Components(
        weights=np.array([0.1, 0.4, 0.2, 0.3]), coarse_labels=np.array([0, 1, 0, 1]),
        top_index=np.array([[1, 0], [3, 1], [1, 3], [2, 0]]),
        top_value=np.array([[0.8, 0.2], [0.9, 0.1], [0.95, 0.05], [1, 0]]),
        train_id=np.array([10, 11, 12, 13]), provenance=Provenance("components"),
    )  # fmt: skip
    first, second = largest_groups(components, images=2)
    assert (first.index, first.weight, first.size) == (1, pytest.approx(0.7), 2)
    assert [(part.index, part.images) for part in first.components] == [(1, [12, 10]), (3, [11, 12])]
    assert [part.index for part in second.components] == [2, 0]


def test_thumbnails_read_only_the_row_groups_they_need(small_run, monkeypatch):
    read = []
    original = pictures.pq.ParquetFile.read_row_group
    monkeypatch.setattr(pictures.pq.ParquetFile, "read_row_group",
                        lambda self, group, **k: read.append(group) or original(self, group, **k))  # fmt: skip
    found = pictures.thumbnails(ImageShards(), [3, 119, 61, 3], size=8)
    assert sorted(found) == [3, 61, 119]
    assert read == [0, 0, 2]
    labels = ImageShards().labels(3)
    for index, image in found.items():
        assert image.size == (8, 8)
        assert image.getpixel((4, 4)) == tuple(int(220 * value) for value in labels[index])


@pytest.mark.parametrize("small_run", [{"pixels": False}], indirect=True)
def test_a_tile_stands_for_an_image_without_pixels(small_run):
    shards = ImageShards()
    first, second, third, again = (pictures.thumbnails(shards, [i], size=84)[i].tobytes() for i in (1, 2, 3, 1))
    assert first == again
    assert len({first, second, third}) == 3  # each has its own name, or its id
    for size in (8, 20, 84):
        (tile,) = pictures.thumbnails(shards, [2], size).values()
        assert tile.size == (size, size)
        assert tile.getpixel((0, 0)) == (228, 232, 236)


def test_a_tile_has_the_end_of_a_long_name():
    ends = [pictures._tile("a" * 500 + end, 84).tobytes() for end in ("1.jpg", "2.jpg")]
    assert ends[0] != ends[1]
    for name in ("x", "a/long name/of a photograph.jpeg", "b" * 500):
        tile = pictures._tile(name, 84)
        edge = Image.new("RGB", (84, 84), tile.getpixel((0, 0)))
        edge.paste(tile.crop((2, 2, 82, 82)), (2, 2))
        assert edge.tobytes() == tile.tobytes()  # no letter touches the edge


@pytest.mark.parametrize("count", [1, 2, 30, 40, 41, 57, 1000])
@pytest.mark.parametrize("bounded", [True, False])
def test_concepts_of_any_number(tmp_path, count, bounded):
    rng = np.random.default_rng(count)
    frequency = (4000 * rng.dirichlet(np.full(count, 0.3))).astype(int)
    low = 2000 / count if bounded else None
    reasons = ["too rare" if bounded and value <= low else "" for value in frequency]
    names = [f"concept {i}" for i in range(count)]
    concepts = Concepts(names, frequency, reasons, low, 2000.0 if bounded else None)
    shown, gap = plots.choose_bars(concepts)
    assert len(set(shown.tolist())) == len(shown) == min(count, plots.MAX_BARS)
    assert gap == (len(shown) if count <= plots.MAX_BARS else 24)
    drawn = frequency[shown]
    assert (np.diff(drawn) <= 0).all()
    if count > plots.MAX_BARS and bounded:  # both sides of the bound are seen
        assert {reasons[i] for i in shown} == {"", "too rare"}
    plots.draw_concepts(tmp_path / "concepts.png", concepts)
    with Image.open(tmp_path / "concepts.png") as picture:
        assert picture.height < 1600


def bars_of(monkeypatch, concepts, overlap):
    """Colours of the bars that are drawn, by concept, and the legend's texts."""
    kept = {}
    draw, legend = Axes.barh, Axes.legend
    monkeypatch.setattr(Axes, "barh", lambda self, *a, **k: kept.setdefault("bars", k) and draw(self, *a, **k))
    monkeypatch.setattr(Axes, "legend", lambda self, *a, **k: kept.update(legend=a[1]) or legend(self, *a, **k))
    plots.draw_concepts(Path("concepts.png"), concepts, overlap)
    order = plots.choose_bars(concepts)[0]
    return {concepts.names[i]: colour for i, colour in zip(order, kept["bars"]["color"], strict=True)}, kept["legend"]


def test_overlapping_concepts_have_a_colour_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, reasons = ["cat", "dog", "wheel", "sky", "tree"], ["", "", "too rare", "", "too rare"]
    concepts = Concepts(names, np.array([9, 8, 0, 5, 1]), reasons, 2.0, None)
    colours, legend = bars_of(monkeypatch, concepts, {"cat": ["Cat"], "sky": ["skies"], "tree": ["tree"]})
    assert colours["cat"] == colours["sky"] == plots.REASON_COLOURS[plots.OVERLAP]
    assert colours["dog"] == plots.REASON_COLOURS[""]
    assert colours["tree"] == colours["wheel"] == plots.REASON_COLOURS["too rare"]  # was not kept
    assert legend == ["kept (1)", f"{plots.OVERLAP} (2)", "too rare (2)"]


def test_without_overlap_the_legend_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    concepts = Concepts(["cat", "dog"], np.array([9, 0]), ["", "too rare"], 2.0, None)
    assert bars_of(monkeypatch, concepts, {})[1] == ["kept (1)", "too rare (1)"]


def test_no_concepts_are_drawn_small(tmp_path):
    plots.draw_concepts(tmp_path / "concepts.png", Concepts([], np.zeros(0, int), [], None, None))
    with Image.open(tmp_path / "concepts.png") as picture:
        assert picture.height < 250
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 20
