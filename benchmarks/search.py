"""Search: latency beside raw faiss, and what texts find.

    python benchmarks/search.py

One million codes of 64 bits: a search by id, from the id to hits with names and labels, beside ``index.search`` of
faiss with the same code. Then, on the artifacts of `scenes` in the current directory (`dvc repro`), precision@10 of
texts: the names of the classes and all pairs of them, against the labels of the database.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from harness import REPEATS, machine, ratios, report, shown, take_turns

from stages.artifacts import CONCEPTS, INDEX, Provenance
from stages.clip import load_clip
from stages.codes import Codes, pack, read_codes, unpack
from stages.features import Features
from stages.hashnet import load_hashnet, relaxed_codes
from stages.images import ImageShards, read_dataset
from stages.index import binary
from stages.index.files import ROWS, Manifest, read_faiss, read_manifest, write_index, write_thumbnails
from stages.mine.concepts import concept_distribution, concept_scores
from stages.search import Searcher
from stages.search.text import EXAMPLES, PROMPT
from stages.tables import matrix, read_table

N, BITS, TOP, QUERIES = 1_000_000, 64, 20, 200
#: Images that count as found, and pairs that fewer images show are left out.
AT = 10


def write_million(directory: Path) -> None:
    """An index of random codes, with a name and two labels an image."""
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, (N, BITS // 8), dtype=np.uint8)
    ids = np.arange(N)
    made = Codes(packed[:0], ids[:0], packed, ids, "random", Provenance("encode"))
    labels = pa.ListArray.from_arrays(np.arange(0, 2 * N + 1, 2), pa.array(rng.integers(0, 20, 2 * N), pa.int16()))
    rows = pa.table([ids, pa.array([f"{i:07d}.jpg" for i in range(N)]), labels], schema=ROWS)
    (directory / INDEX).mkdir(parents=True)
    parts = [write_thumbnails(directory / INDEX, 0, [(ids, [None] * N)])]
    manifest = Manifest.first("flat", made, [f"class {i}" for i in range(20)], 96, parts)
    write_index(directory / INDEX, manifest, binary.build(packed, "flat"), rows)


def latency(repeats: int) -> dict[str, list[float]]:
    """Median seconds of a query, of each kind of search, in each repetition; the kinds take turns query by query.

    Faiss has one thread here: it gives a query no more, and waking the others costs it more than the search.
    """
    with tempfile.TemporaryDirectory() as name:
        write_million(Path(name))
        searcher, path = Searcher.open(name), Path(name) / INDEX
        raw = read_faiss(path, read_manifest(path))  # mapped as ours is: the same pages, so no copy is the warmer one
        ids = np.random.default_rng(1).integers(0, N, QUERIES)
        codes = searcher.index.codes()[ids]
        faiss.omp_set_num_threads(1)

        def faiss_alone(heap: bool) -> Callable[[], None]:
            turn = itertools.cycle(codes)

            def search() -> None:
                raw.use_heap = heap
                raw.search(next(turn)[None], TOP)

            return search

        turn = itertools.cycle(ids.tolist())
        kinds = {"faiss": faiss_alone(heap=True), "faiss, counting": faiss_alone(heap=False),
                 "by_id": lambda: searcher.by_id(next(turn), top=TOP)}  # fmt: skip
        rounds = [take_turns(kinds, QUERIES) for _ in range(repeats)]
        return {kind: [float(np.median(times[kind])) for times in rounds] for kind in kinds}


def texts_found() -> dict[str, dict[str, float]]:
    """Precision@10 by kind of text and way of searching, on the artifacts of the current directory."""
    names = read_dataset().class_names
    codes, shards = read_codes(), ImageShards()
    labels = shards.labels(len(names))[codes.database_id]
    with Features() as features:
        train, images = features.train(), features.images(codes.database_id)
    net, _ = load_hashnet()
    import torch

    relaxed = relaxed_codes(net, torch.from_numpy(train)).numpy()
    table, mined, _ = read_table(CONCEPTS, {"kept": pa.bool_(), "text_feature": None})
    concepts = matrix(table, "text_feature")[table["kept"].to_numpy(zero_copy_only=False)]
    tau = mined.params["tau"]
    train_shares = concept_distribution(concept_scores(train, concepts), tau)
    clip, searcher = load_clip(), Searcher.open()
    signs = unpack(codes.database).astype(np.float32)
    rows = {image: row for row, image in enumerate(codes.database_id.tolist())}

    def by_shares(feature: np.ndarray, sharpness: float) -> np.ndarray:
        """Order of the database by the code of the training images of the likest concept distribution."""
        share = concept_distribution(concept_scores(feature[None], concepts), sharpness)
        likest = np.argsort(-(np.sqrt(share) @ np.sqrt(train_shares).T)[0], kind="stable")[:EXAMPLES]
        code = unpack(pack(relaxed[likest].mean(axis=0)[None]))[0]
        return np.argsort(-(signs @ code), kind="stable")

    def found(text: str, wanted: Sequence[int]) -> dict[str, float]:
        feature = clip.encode_texts([PROMPT.format(text=text)]).numpy()[0]
        orders = {
            "code": [rows[i] for i in searcher.by_text(text, top=AT).ids.tolist()],
            "code, then cosine of 500": [rows[i] for i in searcher.by_text(text, top=AT, rerank=True).ids.tolist()],
            "code by concept distribution": by_shares(feature, tau),
            "code by concept distribution, tau / 4": by_shares(feature, tau / 4),
            "CLIP cosine of all": np.argsort(-(images @ feature), kind="stable"),
        }
        return {way: float(labels[order[:AT]][:, wanted].all(axis=1).mean()) for way, order in orders.items()}

    single = [(_article(name), [i]) for i, name in enumerate(names)]
    pairs = [(f"{_article(names[i])} and {_article(names[j])}", [i, j])
             for i, j in itertools.combinations(range(len(names)), 2) if labels[:, [i, j]].all(axis=1).sum() >= AT]
    kinds = {f"{len(single)} classes": single, f"{len(pairs)} pairs": pairs}
    results = {kind: [found(*text) for text in texts] for kind, texts in kinds.items()}
    return {kind: {way: float(np.mean([one[way] for one in every])) for way in every[0]}
            for kind, every in results.items()}  # fmt: skip


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    arguments = parser.parse_args()
    times = latency(arguments.repeats)
    speed = {name: ratios(times["by_id"], times[name]) for name in times if name != "by_id"}
    texts = texts_found()
    milliseconds = {name: float(np.median(seconds)) * 1e3 for name, seconds in times.items()}
    result = {**machine("faiss-cpu", "numpy"), "repeats": arguments.repeats, "seconds": times, "ratio": speed,
              "milliseconds": milliseconds, "precision_at_10": texts}  # fmt: skip
    lines = [
        "| one million codes of 64 bits, 20 hits | |", "|---|---|",
        *(f"| milliseconds a query, {name} | {value:.2f} |" for name, value in milliseconds.items()),
        *(f"| by_id / {name} | {shown(value)} |" for name, value in speed.items()), "",
        f"| precision@10 of texts, `scenes` | {' | '.join(texts)} |", f"|---|{'---|' * len(texts)}",
        *(f"| {way} | {' | '.join(f'{found[way]:.3f}' for found in texts.values())} |"
          for way in next(iter(texts.values()))),
    ]  # fmt: skip
    report("search", result, "\n".join(lines))


if __name__ == "__main__":
    main()
