"""The report: a page that needs nothing else, a summary, and what they say."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stage_runner import copy, inputs

from stages.artifacts import (
    BASELINES,
    BASELINES_QUERY_PRECISION,
    CONCEPTS,
    DATASET,
    METRICS,
    QUERY_PRECISION,
    read_json,
    write_json,
)
from stages.errors import InputError
from stages.explain.tables import HIERARCHY, read_hierarchy
from stages.map.artifact import read_map, write_map
from stages.report import findings
from stages.report.config import Params
from stages.report.figures import MAX_COLOURED, MAX_POINTS, image_map, svg, training_losses
from stages.report.intervals import bootstrap_interval
from stages.report.markdown import escaped, table
from stages.report.published import PUBLISHED, published
from stages.report.stage import PAGE, SUMMARY, run
from stages.report.with_times import write_with_times
from stages.timings import TIMINGS

HOSTILE = """<script>alert("1")</script> 'x' & | [a](javascript:b) `c` $d$"""
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Elements, attributes and texts of a page; refuses what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny_run):
    """What the stage needs, and what it makes of it."""
    directory = tmp_path_factory.mktemp("report")
    copy(inputs("report"), tiny_run, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        run(Params())
    return directory


@pytest.fixture
def here(original, tmp_path, monkeypatch):
    """The current directory has a copy of the stage's inputs."""
    copy(inputs("report"), original, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def page(original):
    return Page((original / PAGE).read_text(encoding="utf-8"))


# ---- the page


def test_every_section_is_there_and_in_the_table_of_contents(page):
    sections = [found["id"] for found in page.all("section") if "id" in found]
    assert sections == ["run", "warnings", "metrics", "curves", "examples", "concepts", "components", "bits", "timings"]
    links = [found["href"] for found in page.all("a")]
    assert links == ["#main", *(f"#{name}" for name in sections)]
    for words in ("What was run", "mAP@all", "ITQ", "Best", "Worst", "Drawn at random", "Kept (", "Group ", "Dead "):
        assert words in page.text
    assert len(page.all("svg")) == 10


def test_nothing_is_fetched(page, original):
    """Neither by an element nor by the style sheet; and pictures are in the page itself."""
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
        assert not [name for name in attributes if name.startswith("on")]
    assert not page.all("script", "link", "iframe", "object", "embed", "base", "form")
    style = re.search(r"<style>(.*?)</style>", (original / PAGE).read_text(encoding="utf-8"), re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style


def test_a_reader_who_sees_nothing_is_told(page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(found["alt"] for found in page.all("img"))
    figures = page.all("svg")
    assert all(found["role"] == "img" and len(found["aria-label"]) > 20 for found in figures)
    assert len({found["aria-label"] for found in figures}) == len(figures)
    assert all(attributes["aria-label"] for _, attributes in page.elements if "tabindex" in attributes)
    assert all(found.get("scope") in ("row", "col") for found in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert [tag for tag, _ in page.elements if tag == "h1"] == ["h1"]


def test_colours_of_both_schemes_are_told_apart():
    """At least 4.5 to 1 for text, as WCAG 2 asks (level AA)."""
    style = (Path(findings.__file__).parent / "style.css").read_text()
    parts = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    light, dark = (dict(re.findall(r"--(\w+): (#\w{6})", part)) for part in parts[:2])

    def luminance(colour):
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for ground in ("paper", "panel", "tint"):
            for name in ("ink", "soft", "accent", "good", "bad", "alarm"):
                low, high = sorted((luminance(scheme[name]), luminance(scheme[ground])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, ground)


def test_pictures_are_of_one_size(page, original):
    assert (original / PAGE).stat().st_size < 2_000_000
    for found in page.all("img"):
        data = base64.b64decode(found["src"].removeprefix("data:image/webp;base64,"))
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (96, 96)


def test_what_was_run_is_told_with_its_digests(page, original):
    dataset = read_json(original / DATASET)
    made = json.loads(next(found for found in page.all("meta") if found.get("name") == "conceptbits")["content"])
    assert made["stage"] == "report" and made["dataset"] == dataset["digest"] and made["params"]["bits"] == 32
    for words in (dataset["digest"][:16], dataset["splits"][:16], "everyday.txt", "scenes-clip", "fused", "torch 2"):
        assert words in page.text
    assert str(original) not in (original / PAGE).read_text(encoding="utf-8")


def test_same_inputs_same_bytes(here, original, run_stages):
    """In another directory and process, whatever time the stages took."""
    run(Params())
    for path in (PAGE, SUMMARY):
        assert path.read_bytes() == (original / path).read_bytes()
    (here / "params.yaml").write_bytes((Path(__file__).parents[1] / "params.yaml").read_bytes())
    for _ in range(2):
        run_stages(here, "report").check()
        assert (TIMINGS / "report.json").exists()
        assert PAGE.read_bytes() == (original / PAGE).read_bytes()
        write_json(TIMINGS / "train.json", timing("train"))


# ---- numbers


def test_metrics_are_those_of_the_reports_with_intervals_around_them(page, original):
    metrics = read_json(original / METRICS)
    rows = re.findall(r"([\d.]+) \[([\d.]+), ([\d.]+)\]", page.text)
    named = [metrics[name] for name in metrics if name.endswith("_tie_aware")]
    assert [row[0] for row in rows] == [f"{value:.3f}" for value in named]
    for value, low, high in rows:
        assert float(low) < float(value) < float(high)
    for method in read_json(original / BASELINES).values():
        if isinstance(method, dict):
            assert f"{method.get('map_all_tie_aware', method['map_all_stable']):.3f}" in page.text


def test_baselines_have_intervals_of_their_difference_to_the_run(page, original):
    baselines, metrics = read_json(original / BASELINES), read_json(original / METRICS)
    mine = pq.read_table(original / QUERY_PRECISION)["average_precision_all"].to_numpy()
    table = pq.read_table(original / BASELINES_QUERY_PRECISION)
    rows = re.findall(r"([\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]", page.text)
    assert len(rows) == 2 * 5  # mAP@1000 and mAP@all of each
    theirs = table.filter(pc.equal(table["method"], "itq"))["average_precision_all"].to_numpy()
    low, high = bootstrap_interval(theirs - mine)
    value, own = baselines["itq"]["map_all_tie_aware"], metrics["map_all_tie_aware"]
    assert (f"{value:.3f}", f"{low:+.3f}", f"{high:+.3f}") in rows
    assert low < value - own < high
    # In pairs it is narrower than what the two intervals alone would allow.
    apart = bootstrap_interval(theirs, seed=1)[1] - bootstrap_interval(theirs)[0] + np.ptp(bootstrap_interval(mine))
    assert high - low < apart


def test_bootstrap_interval_is_that_of_the_normal_approximation(monkeypatch):
    values = np.random.default_rng(1).beta(2, 1, 1000)
    low, high = bootstrap_interval(values)
    spread = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.1 * spread)
    assert bootstrap_interval(values) == (low, high)
    monkeypatch.setattr("stages.report.intervals._CHUNK", 7000)
    assert bootstrap_interval(values) == (low, high)  # whatever is held in memory at a time
    assert bootstrap_interval(np.array([0.25])) == (0.25, 0.25)


def test_published_numbers_are_shown_for_their_protocol_alone():
    metrics = {"map_at_1000_stable": 0.9, "map_at_5000_stable": 0.8}
    found = published("cifar10", "cifar10", "ViT-B-16-quickgelu", metrics, 48)
    assert found.metric == "map_at_1000_stable" and ("OH", 48, 0.88) in found.rows
    assert "differs" not in found.why
    assert "differs" not in published("cifar10", "cifar10", "hf-hub:laion/CLIP-ViT-B-16-laion2B", metrics, 36).why
    assert "features are of no CLIP" in published("cifar10", "cifar10", None, metrics, 48).why
    assert "features are of ViT-B-16-SigLIP" in published("cifar10", "cifar10", "ViT-B-16-SigLIP", metrics, 48).why
    differs = published("cifar10", "cifar10", "RN50", metrics, 32).why
    assert "its features are of RN50 and its codes have 32 bits" in differs
    for dataset, protocol, why in (
        ("scenes", "scenes", "nobody has published"), ("coco2014", "coco (queries 40)", "this run's is coco (queries"),
        ("cifar10", "cifar10-1000-59000", "are of the protocol"),
    ):  # fmt: skip
        none = published(dataset, protocol, "ViT-B-16", metrics, 32)
        assert none.rows == () and why in none.why
    assert published("nuswide", "nuswide", "ViT-B-16", {}, 32).rows == ()
    known = json.loads(PUBLISHED.read_text())
    assert known["source"] and all(0 < row["map"] < 1 for found in known["datasets"].values() for row in found["rows"])


def test_published_numbers_are_in_the_page(here):
    write_json(DATASET, read_json(DATASET) | {"name": "cifar10", "protocol": "cifar10"})
    run(Params())
    text = Page(PAGE.read_text()).text
    assert "For orientation" in text and "CIBHash 36 0.900" in text
    assert "| CIBHash | 36 | 0.900 |" in SUMMARY.read_text()


# ---- warnings


def test_each_thing_to_know_is_told():
    metrics = {
        "guidance": "the data set's own names", "overlapping_concepts": [f"name {i}" for i in range(20)],
        "map_at_1000_stable": 0.5, "map_at_1000_tie_aware": 0.48, "map_all_stable": 0.4, "map_all_tie_aware": 0.4,
        "distinct_codes": 3, "database": 100, "dead_bits": 1, "near_duplicates": 2, "queries": 50,
    }  # fmt: skip
    found = findings.warnings(metrics, 3, 97, ["Something else.", "queries with a near-duplicate: 2"])
    assert [kind for kind, _ in found] == [
        "Leakage", "Ties", "Equal codes", "Dead bits", "Skipped images", "Near-duplicates", "Data",
    ]  # fmt: skip
    texts = dict(found)
    assert "name 11 and 8 more" in texts["Leakage"]
    assert "moves mAP@1,000 by +0.0200" in texts["Ties"] and "1 bit of the codes has" in texts["Dead bits"]
    assert "3 source images of 100" in texts["Skipped images"] and "2 queries of 50 have" in texts["Near-duplicates"]
    good = {"guidance": "general vocabulary", "dead_bits": 0, "near_duplicates": 0}
    assert findings.warnings(good | {"distinct_codes": 99, "database": 100}, 0, 100, []) == []
    assert [kind for kind, _ in findings.warnings({"labels": False}, 0, 9, [])] == ["Near-duplicates", "No labels"]


def test_shown_queries_are_the_best_the_worst_and_others():
    precision = np.array([0.5, 0.9, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8])
    codes = np.arange(8, dtype=np.uint8)[:, None]
    codes[3] = codes[1]  # finds the same images
    found = findings.chosen_queries(precision, codes, 2)
    assert {heading: rows.tolist() for heading, rows in list(found.items())[:2]} == {"Best": [1, 7], "Worst": [2, 6]}
    assert len(found["Drawn at random"]) == 2 and not {1, 3, 7, 2, 6} & set(found["Drawn at random"].tolist())
    assert list(findings.chosen_queries(None, codes, 3)) == ["Drawn at random"]
    assert list(findings.chosen_queries(precision[:1], codes[:1])) == ["Best"]


# ---- hostile and incomplete inputs


def rename(path, column):
    table = pq.read_table(path)
    names = pa.array([f"{HOSTILE} {i}" for i in range(len(table))])
    metadata = {key: value if key != b"concepts" else json.dumps([f"{HOSTILE} {i}" for i in range(
        len(json.loads(value)))]).encode() for key, value in table.schema.metadata.items()}  # fmt: skip
    if column:
        table = table.set_column(table.schema.get_field_index(column), column, names)
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_names_are_text_and_nothing_else(here):
    dataset = read_json(DATASET)
    changes = {"class_names": [f"{HOSTILE} {name}" for name in dataset["class_names"]], "licence": HOSTILE}
    write_json(DATASET, dataset | changes | {"name": HOSTILE, "protocol": HOSTILE, "notes": [HOSTILE]})
    rename(CONCEPTS, "concept")
    rename(Path("reports/explain/hierarchy.parquet"), None)
    baselines = read_json(BASELINES)
    write_json(BASELINES, {HOSTILE if name == "lsh" else name: row for name, row in baselines.items()})
    for curves in Path("reports/plots").glob("baselines_*.csv"):
        quoted = HOSTILE.replace('"', '""')
        curves.write_text(curves.read_text().replace("lsh,", f'"{quoted}",'))
    run(Params())
    text = PAGE.read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text
    found = Page(text)
    assert not found.all("script") and found.text.count('<script>alert("1")</script>') > 30
    assert any(HOSTILE in image["alt"] for image in found.all("img"))
    summary = SUMMARY.read_text(encoding="utf-8")
    assert "<script" not in summary and "[a](" not in summary
    for block in summary.split("\n\n"):  # the rows of a table have the same number of cells
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


def test_without_labels_the_rest_is_there(here):
    write_json(DATASET, read_json(DATASET) | {"class_names": []})
    metrics = {key: value for key, value in read_json(METRICS).items() if not key.startswith(("map", "precision"))}
    write_json(METRICS, metrics | {"labels": False, "note": "none"})
    write_json(BASELINES, {"labels": False, "note": "none", "run": read_json(BASELINES)["run"]})
    for name in ("precision_recall", "precision_at_n"):
        head = Path(f"reports/plots/{name}.csv").read_text().splitlines()[0]
        Path(f"reports/plots/{name}.csv").write_text(f"{head}\n")
    queries = pq.read_table(QUERY_PRECISION)
    pq.write_table(queries.select(["query"]), QUERY_PRECISION)
    run(Params())
    found = Page(PAGE.read_text())
    assert "there are no retrieval metrics" in found.text and "Drawn at random" in found.text
    assert "Best" not in found.text and "✓" not in found.text
    assert len(found.all("svg")) == 7
    assert "### Metrics" not in SUMMARY.read_text()


def test_hierarchy_is_read_as_it_was_written(here):
    hierarchy, concepts, _ = read_hierarchy()
    coarse = hierarchy.coarse
    for level, above in ((coarse, hierarchy.collection[None]), (hierarchy.fine, coarse.distribution)):
        assert level.distribution.shape == (len(level.weights), len(concepts))
        np.testing.assert_allclose(level.distribution.sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(level.change, level.distribution - above[level.parents], atol=1e-6)
    np.testing.assert_allclose(coarse.weights @ coarse.distribution, hierarchy.collection, atol=1e-4)
    table = pq.read_table(HIERARCHY)
    parents = pa.array([99] * len(table), pa.int32())
    pq.write_table(table.set_column(table.schema.get_field_index("parent"), "parent", parents), HIERARCHY)
    with pytest.raises(InputError, match=r"hierarchy\.parquet: has no coarse components with a parent each; rebuild"):
        run(Params())


def test_queries_of_other_codes_are_refused(here):
    table = pq.read_table(QUERY_PRECISION)
    pq.write_table(table.slice(1), QUERY_PRECISION)
    with pytest.raises(InputError, match=r"query_precision\.parquet: has other queries than data/codes\.h5; rebuild"):
        run(Params())


def test_metrics_of_another_code_length_are_refused(here):
    report = read_json(METRICS)
    report["run"][0]["params"]["bits"] = 64
    write_json(METRICS, report)
    with pytest.raises(InputError, match=r"^reports/metrics\.json: was measured with other codes than those in data"):
        run(Params())


def test_cooccurrence_of_other_components_is_refused(here):
    with h5py.File("data/components.h5", "r+") as file:
        del file["cooccurrence"]
        file["cooccurrence"] = np.zeros((3, 3))
    with pytest.raises(InputError, match=r"^data/components\.h5: has a co-occurrence of shape \(3, 3\) for 20"):
        run(Params())


def test_a_map_of_other_codes_is_refused(here):
    found = read_map()
    params = found.provenance.params | {"bits": 64}
    write_map(replace(found, provenance=replace(found.provenance, params=params)))
    with pytest.raises(InputError, match=r"^data/map\.parquet: was made with other codes than those in data/codes\.h5"):
        run(Params())


def test_model_of_other_features_is_refused(here):
    path = Path("models/clip/config.json")
    write_json(path, read_json(path) | {"sha256": "f" * 64})
    with pytest.raises(InputError, match=r"^models/clip: made with another model \(ffffffffffff\)"):
        run(Params())


# ---- times


def timing(stage, **changes):
    return {
        "stage": stage, "seconds": 61.4, "processor_seconds": 100.0, "peak_bytes": 300 * 2**20, "worker_peak_bytes": 0,
        "dataset": read_json(DATASET)["digest"], "params": {},
    } | changes  # fmt: skip


def test_times_of_this_run_are_shown_on_demand_and_in_order(here, original, run_stages):
    for stage, changes in (
        ("train", {"params": {"method": "fused", "bits": 32}}), ("download", {"seconds": 3725.0}), ("report", {}),
        ("encode", {"dataset": "f" * 64}), ("baselines", {"params": {"bits": 64}}),
    ):  # fmt: skip
        write_json(TIMINGS / f"{stage}.json", timing(stage, **changes))
    write_with_times(Path("times.html"))
    text = Page(Path("times.html").read_text()).text.split("Time and memory")[-1]
    assert "download 1 h 02 min 1 min 40 s 300 MiB" in text and "train 1 min 01 s" in text
    assert text.index("download") < text.index("train") < text.index("report 1 min")
    assert "encode" not in text and "baselines" not in text
    assert not PAGE.exists()
    run_stages(here, "report", "--timings", "again.html").check()
    assert Path("again.html").read_bytes() == Path("times.html").read_bytes()
    kept = Page((original / PAGE).read_text()).text.split("Time and memory")[-1]
    assert "python -m stages timings" in kept and "MiB" not in kept


def test_a_page_with_times_of_nothing_says_so(here):
    write_with_times(Path("times.html"))
    assert "No stage has run on this machine" in Page(Path("times.html").read_text()).text


@pytest.mark.parametrize("name", ["reports/index.html", "reports/../reports/index.html", "times.htm", "times"])
def test_the_page_that_is_kept_has_no_times(here, name):
    with pytest.raises(InputError, match=r"^--timings .*: the page with times is an \.html file beside reports/index"):
        write_with_times(Path(name))


@pytest.mark.parametrize("content", ["", "[]", '{"stage": "train"}', '{"stage": "other"}'])
def test_a_damaged_record_of_time_is_named(here, content):
    TIMINGS.mkdir(parents=True)
    (TIMINGS / "train.json").write_text(content)
    with pytest.raises(InputError, match=r"^reports/timings/train\.json: no record of a stage's time; delete it$"):
        write_with_times(Path("times.html"))


# ---- parts


def test_figures_take_the_colours_of_the_page():
    text = svg(training_losses({"loss": [(0.0, 2.0), (1.0, 1.0)], "bits": [(0.0, 1.0), (1.0, 0.5)]}), "Losses.")
    assert "var(--accent)" in text and "var(--ink)" in text and "#0b5cad" not in text and "http" not in text
    assert text == svg(training_losses({"loss": [(0.0, 2.0), (1.0, 1.0)], "bits": [(0.0, 1.0), (1.0, 0.5)]}), "Losses.")


def test_the_map_colours_the_largest_components_and_draws_so_many_images():
    rng = np.random.default_rng(0)
    coarse = np.minimum(rng.integers(0, 20, 5000), 15) - 1  # 14 is the largest, some have none
    names = [f"group {k}" for k in range(15)]
    figure = image_map(*rng.standard_normal((2, 5000)), coarse, names)
    (axes,), (legend,) = figure.axes, figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[0] == "group 14" and len(labels) == MAX_COLOURED + 1 and labels[-1] == "3 smaller ones"
    assert sum(len(line.get_xdata()) for line in axes.lines) == MAX_POINTS
    marks = {(line.get_marker(), line.get_color()) for line in axes.lines}
    assert len(marks) == MAX_COLOURED + 1
    few = image_map(np.zeros(3), np.zeros(3), np.array([0, 0, 1]), names)
    assert [text.get_text() for text in few.legends[0].get_texts()] == ["group 0", "group 1"]


def test_markdown_of_untrusted_text():
    assert escaped("a|b\n<i>") == "a\\|b &lt;i&gt;"
    assert table(("x", "y"), [("a|b", 1)], 1) == "| x | y |\n| --- | ---: |\n| a\\|b | 1 |"
