"""Statistics, tables and figures of a comparison, on numbers small enough to follow."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from stages.artifacts import PROVENANCE_KEY, Provenance
from stages.benchmark.figures import draw_figures
from stages.benchmark.report import TESTS, escaped, latex, markdown, number, p_value, sheets
from stages.benchmark.statistics import comparisons, holm, seed_test, sign_flip_test, summary, values

MADE = Provenance("benchmark", params={"bits": [16]}, versions={"torch": "2.9"})
EXTRA = {
    "datasets": {"a_b": {"digest": "d1", "concepts": 0, "model": ""}},
    "search": {"a_b": {"criterion": "clusters", "trials": 2, "bits": 16, "seed": 0, "methods": {"dsch": {
        "trials": [{"settings": {"train.lr": 0.1, "train.dsch.temperature": 0.2}, "score": 0.51234},
                   {"settings": {"train.lr": 0.2, "train.dsch.temperature": 0.2}, "score": None, "failed": "nan"}],
        "chosen": {"train.lr": 0.1, "train.dsch.temperature": 0.2},
    }}}},
}  # fmt: skip


def frame_of(rows: dict[tuple[str, int | None], list[float]], queries: bool = True) -> pd.DataFrame:
    """(method, bits) -> mAP of each seed; every query has the mean, give or take what cancels out."""
    records = []
    for (method, bits), scores in rows.items():
        for seed, score in enumerate(scores):
            record = {"dataset": "a_b", "protocol": "p%", "splits": "5", "method": method, "bits": bits,
                      "seed": None if bits is None else seed, "guidance": "images alone", "map_all_stable": score}
            if bits is not None:
                record["map_all_tie_aware"] = score
                if queries:
                    record["query_ap_all"] = score + 0.01 * np.resize([1, -1], 40)
            records.append(record)
    return pd.DataFrame(records)


# ---- numbers


def test_mean_and_deviation_by_hand():
    frame = frame_of({("itq", 16): [0.1, 0.2, 0.6], ("dsch", 16): [0.5], ("feature_cosine", None): [0.7]})
    found = summary(frame, "map_all")
    mean, std, seeds = found.loc[("a_b", "itq", 16)]
    assert mean == pytest.approx(0.3) and seeds == 3
    assert std == pytest.approx(np.sqrt((0.04 + 0.01 + 0.09) / 2))  # of a sample: divided by n - 1
    assert np.isnan(found.loc[("a_b", "dsch", 16)]["std"])
    assert found.loc[("a_b", "feature_cosine", -1)]["mean"] == 0.7


def test_values_are_tie_aware_but_for_references():
    frame = pd.DataFrame({"map_all_stable": [0.1, 0.2], "map_all_tie_aware": [0.3, None]})
    assert list(values(frame, "map_all")) == [0.3, 0.2]
    assert values(frame, "map_at_50").isna().all()


def test_seed_test_is_the_paired_t_test():
    pairs = pd.DataFrame({"a": [0.5, 0.52, 0.49], "b": [0.55, 0.56, 0.57]})
    difference = (pairs["a"] - pairs["b"]).to_numpy()
    t = difference.mean() / (difference.std(ddof=1) / np.sqrt(3))
    assert seed_test(pairs) == pytest.approx(2 * stats.t.sf(abs(t), df=2))
    assert seed_test(pairs[:1]) is None
    assert seed_test(pd.DataFrame({"a": [0.5, 0.25], "b": [0.75, 0.5]})) is None  # no spread, so no test


def test_sign_flips_against_all_of_them():
    """Ten queries have 1,024 sign patterns; the share of those with as large a sum is the exact p."""
    rng = np.random.default_rng(0)
    differences = rng.normal([0.02, 0.1, 0.0], 0.1, (10, 3))
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    sums = np.abs(signs @ differences)
    exact = np.mean(sums >= np.abs(differences.sum(axis=0)) - 1e-12, axis=0)
    np.testing.assert_allclose(sign_flip_test(differences), exact, atol=0.02)


def test_sign_flips_against_scipy():
    rng = np.random.default_rng(1)
    first, second = rng.random(60), rng.random(60) + 0.05
    expected = stats.permutation_test(
        (first, second), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=9999, rng=np.random.default_rng(2),
    ).pvalue  # fmt: skip
    assert sign_flip_test((first - second)[:, None])[0] == pytest.approx(expected, abs=0.02)


def test_sign_flips_of_certain_and_of_no_differences():
    certain, none = sign_flip_test(np.stack([np.full(50, 0.1), np.zeros(50)], axis=1))
    assert certain == 1 / 10000 and none == 1
    # A chunk more or less does not matter: each flip is drawn anew.
    assert sign_flip_test(np.full((50, 1), 0.1), flips=999) == [1 / 1000]


def test_holm_by_hand():
    assert holm([0.01, 0.04, None, 0.03]) == [0.03, 0.06, None, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([None]) == [None] and holm([]) == []


def test_comparisons_are_with_the_best_of_each_column():
    frame = frame_of({("itq", 16): [0.5, 0.52, 0.51], ("dsch", 16): [0.6, 0.63, 0.61], ("lsh", 16): [0.2, 0.3, 0.1],
                      ("itq", 32): [0.9, 0.9, 0.9], ("dsch", 32): [0.8, 0.8, 0.8],
                      ("feature_cosine", None): [0.95]})  # fmt: skip
    found = {(c.bits, c.method): c for c in comparisons(frame, ["map_all"])}
    assert found.keys() == {(16, "itq"), (16, "lsh"), (32, "dsch")}
    assert {c.best for c in found.values() if c.bits == 16} == {"dsch"} and found[32, "dsch"].best == "itq"
    assert found[16, "itq"].difference == pytest.approx(0.51 - 1.84 / 3)
    raw = [stats.ttest_rel([0.5, 0.52, 0.51], [0.6, 0.63, 0.61]).pvalue,
           stats.ttest_rel([0.2, 0.3, 0.1], [0.6, 0.63, 0.61]).pvalue]  # fmt: skip
    assert [found[16, "itq"].p_seeds, found[16, "lsh"].p_seeds] == pytest.approx(holm(raw))
    assert found[16, "itq"].p_queries == pytest.approx(2 / 10000)  # two methods of that column
    assert found[32, "dsch"].p_seeds is None and found[32, "dsch"].p_queries == pytest.approx(1 / 10000)


def test_only_seeds_that_both_have_are_compared():
    frame = frame_of({("itq", 16): [0.5, 0.52, 0.51], ("dsch", 16): [0.6, 0.63]})
    (found,) = comparisons(frame, ["map_all"])
    assert found.p_seeds == pytest.approx(stats.ttest_rel([0.5, 0.52], [0.6, 0.63]).pvalue)


def test_without_queries_only_seeds_are_tested():
    (found,) = comparisons(frame_of({("itq", 16): [0.5, 0.52], ("dsch", 16): [0.6, 0.63]}, queries=False), ["map_all"])
    assert found.p_queries is None and found.p_seeds is not None


@pytest.mark.parametrize(("value", "text"), [(0.5, ".500"), (-0.0104, "-.010"), (1.0, "1.000"), (0.9996, "1.000")])
def test_numbers(value, text):
    assert number(value) == text


def test_p_values():
    assert [p_value(p) for p in (None, 0.0002, 0.012, 1.0)] == ["", "< .001", ".012", "1.000"]


# ---- tables

SMALL = {("itq", 16): [0.5, 0.52, 0.51], ("dsch", 16): [0.6, 0.63, 0.61], ("feature_cosine", None): [0.7]}


def test_markdown_to_the_letter():
    text = markdown(frame_of(SMALL), ["map_all"], MADE, EXTRA)
    assert text == f"""# Comparison of methods

{TESTS}

## a_b

Protocol p%, splits 5.

| method | guidance | mAP@all, 16 bits |
| --- | --- | --- |
| ITQ | images alone | .510†‡ ±.010 |
| dsch | images alone | **.613** ±.015 |
| features, cosine (real-valued) | images alone | .700 |

Paired differences to the best, p after Holm's correction:

| metric | bits | method | best | difference | p over queries | p over seeds |
| --- | --- | --- | --- | --- | --- | --- |
| mAP@all | 16 | ITQ | dsch | -.103 | < .001 | .001 |

Search: 2 trials of each trained method at 16 bits, seed 0; the score is the tie-aware mAP of held-out training images \
by clusters.

| method | values | score |  |
| --- | --- | --- | --- |
| dsch | lr 0.1, dsch.temperature 0.2 | .5123 | chosen |
| dsch | lr 0.2, dsch.temperature 0.2 | failed |  |

## Made with

- torch 2.9
- a_b: digest d1, concepts 0

All parameters are in results.parquet.
"""


def test_marks_say_which_test():
    frame = frame_of({("itq", 16): [0.5, 0.5], ("dsch", 16): [0.6, 0.6]})  # equal differences: no test over seeds
    (sheet,) = sheets(frame, ["map_all"], comparisons(frame, ["map_all"]))
    (_, _, (itq,)), (_, _, (dsch,)) = sheet.rows
    assert (itq.best, itq.queries, itq.seeds) == (False, True, False)
    assert (dsch.best, dsch.queries, dsch.seeds) == (True, False, False)


def test_references_stand_once_a_metric():
    frame = frame_of({("itq", 16): [0.5], ("itq", 32): [0.6], ("feature_cosine", None): [0.7]})
    (sheet,) = sheets(frame, ["map_all"], [])
    assert sheet.columns == [("map_all", 16), ("map_all", 32)]
    _, _, (first, second) = sheet.rows[1]
    assert first.mean == 0.7 and not first.best and second is None


def test_latex_is_balanced_and_escaped():
    text = latex(frame_of(SMALL), ["map_all"], MADE, EXTRA)
    body = re.sub(r"(?m)^%.*$", "", text)
    assert body.count("{") == body.count("}") and len(re.findall(r"(?<!\\)\$", body)) % 2 == 0
    opened, closed = re.findall(r"\\begin\{(\w+)\}", body), re.findall(r"\\end\{(\w+)\}", body)
    assert opened == ["table", "tabular"] and closed == ["tabular", "table"]
    assert not re.search(r"(?<!\\)[_%#]", body) and not re.search("[†‡±]", body)
    lines = body.split("\\toprule")[1].split("\\bottomrule")[0].splitlines()
    cells = [line for line in lines if line.endswith(r"\\")]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in cells[1:]} == {2} and len(cells) == 5
    assert r"\textbf{.613} {\scriptsize$\pm$.015}" in body
    assert r".510$^{\dagger\ddagger}$" in body
    comment = json.loads(re.search(r"^% (\{.*\})$", text, re.MULTILINE)[1])
    assert comment["search"]["a_b"]["trials"] == 2 and comment["versions"] == {"torch": "2.9"}


def test_escaped():
    assert escaped(r"a_b & 5% {x} \ ~†") == (
        r"a\_b \& 5\% \{x\} \textbackslash{} \textasciitilde{}$^{\dagger}$"
    )


# ---- figures


def test_figures_have_lines_bars_and_provenance(tmp_path: Path):
    rows = {(method, bits): [0.1 * number + bits / 100, 0.1 * number + bits / 90]
            for number, method in enumerate(("lsh", "itq", "dsch")) for bits in (16, 32, 64)}  # fmt: skip
    frame = frame_of({**rows, ("feature_cosine", None): [0.9]})
    frame = pd.concat([frame, frame.assign(dataset="other (x)")])
    draw_figures(frame, ["map_all"], tmp_path, MADE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a_b.png", "other_x_.png"]
    with Image.open(tmp_path / "a_b.png") as image:
        assert json.loads(image.text[PROVENANCE_KEY])["stage"] == "benchmark"
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(230, 159, 0), (86, 180, 233), (0, 158, 115)} <= colours


def test_figure_axes():
    from matplotlib.figure import Figure

    from stages.benchmark.figures import draw_panel

    axes = Figure().subplots()
    rows = {("itq", 16): [0.4, 0.6], ("itq", 64): [0.7], ("feature_cosine", None): [0.9]}
    draw_panel(axes, frame_of(rows), "map_all")
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert list(lines["ITQ"]) == [0.5, 0.7] and list(lines["features, cosine (real-valued)"]) == [0.9, 0.9]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["16", "64"]
    assert axes.get_ylabel() == "mAP@all (tie-aware)"
    (bars,) = [collection.get_segments() for collection in axes.collections]
    spread = np.std([0.4, 0.6], ddof=1)
    np.testing.assert_allclose([y for _, y in bars[0]], [0.5 - spread, 0.5 + spread])
