"""The evaluation of binary codes against the loop over queries that papers publish with their code.

    python benchmarks/evaluation.py

10,000 queries against 50,000 codes of 64 bits, ten classes: both compute mAP in stable order at the same cut-offs; ours
adds the tie-aware one, precision at N, and precision-recall. Then ours alone as the database grows, and its memory.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from harness import REPEATS, machine, peak_memory, ratios, report, shown, take_turns

from stages.evaluate.retrieval import Retrieval, evaluate_codes

BITS, CLASSES, CUTOFFS, PRECISION_AT = 64, 10, (1000, 5000), (1, 10, 100, 1000)
QUERIES, DATABASE = 10_000, 50_000
#: Queries that the loop ranks; its time grows with their number, as ours does.
RANKED = 500
#: Databases of the curve, with as many queries as make the pairs those of the comparison.
SIZES = (10_000, 100_000, 1_000_000)


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Packed codes that have to do with their labels, and these: uint8 (n, 8), bool (n, 10)."""
    centres = np.random.default_rng(0).integers(0, 2, (CLASSES, BITS))
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, n)
    codes = [np.packbits(centres[some] ^ (rng.random((len(some), BITS)) < 0.3), axis=1)
             for some in np.array_split(label, -(-n // 10_000))]  # fmt: skip
    return np.concatenate(codes), np.eye(CLASSES, dtype=bool)[label]


def loop(query: np.ndarray, database: np.ndarray, query_label: np.ndarray, database_label: np.ndarray) -> list[float]:
    """mAP at the cut-offs and over all: distances by a product of signs, a sort and a sum for each query."""
    signs, others = (np.unpackbits(codes, axis=1) * 2.0 - 1 for codes in (query, database))
    relevance, items = query_label.astype(np.float32), database_label.astype(np.float32)
    total = np.zeros(len(CUTOFFS) + 1)
    for code, labels in zip(signs, relevance, strict=True):
        relevant = (labels @ items.T) > 0
        order = np.argsort(0.5 * (BITS - code @ others.T), kind="stable")  # the usual argsort orders ties at random
        ranked = relevant[order].astype(np.float32)
        for column, cutoff in enumerate((*CUTOFFS, len(database))):
            found = ranked[:cutoff]
            count = int(found.sum())
            if count:
                positions = np.asarray(np.where(found == 1)) + 1.0
                total[column] += np.mean(np.linspace(1, count, count) / positions)
    return list(total / len(query))


def ours(n_queries: int, n: int) -> Retrieval:
    query, database = drawn(n_queries, 1), drawn(n, 2)
    return evaluate_codes(query[0], database[0], query[1], database[1], CUTOFFS, PRECISION_AT)


def memory_of(n_queries: int, n: int) -> float:
    """Peak in MB of a process that evaluates, its codes and labels included."""
    root = Path(__file__).parents[1]
    command = [sys.executable, __file__, "--once", str(n_queries), str(n)]
    return peak_memory(command, root, {"PYTHONPATH": str(root)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--once", type=int, nargs=2, metavar=("QUERIES", "DATABASE"), help="evaluate, and do no more")
    arguments = parser.parse_args()
    if arguments.once:
        ours(*arguments.once)
        return
    (query, query_label), (database, database_label) = drawn(QUERIES, 1), drawn(DATABASE, 2)
    few = slice(0, RANKED)
    expected = loop(query[few], database, query_label[few], database_label)
    found = evaluate_codes(query[few], database, query_label[few], database_label, CUTOFFS, PRECISION_AT).map_stable
    difference = float(np.abs(np.array(expected) - list(found.values())).max())
    times = take_turns({
        "loop": lambda: loop(query[few], database, query_label[few], database_label),
        "ours": lambda: evaluate_codes(query, database, query_label, database_label, CUTOFFS, PRECISION_AT),
    }, arguments.repeats)  # fmt: skip
    speed = ratios([seconds * QUERIES / RANKED for seconds in times["loop"]], times["ours"])
    curve = {}
    for n in SIZES:
        n_queries = QUERIES * DATABASE // n // 5
        start = time.perf_counter()
        ours(n_queries, n)
        curve[n] = (time.perf_counter() - start) / n_queries / n * 1e9
    memory = {f"{n_queries:,} x {n:,}": memory_of(n_queries, n) for n_queries, n in
              ((QUERIES, DATABASE), (QUERIES // 20, SIZES[-1]))}  # fmt: skip
    result = {**machine("numpy", "numba"), "repeats": arguments.repeats, "loop_queries": RANKED,
              "difference": difference, "seconds": times, "speed": speed, "nanoseconds_a_pair": curve,
              "memory_mb": memory}  # fmt: skip
    lines = [
        "| evaluation, 10,000 queries x 50,000 codes of 64 bits | |", "|---|---|",
        f"| times as fast as the loop | {shown(speed, 1)} |",
        f"| largest difference of mAP | {difference:.1e} |",
        *(f"| nanoseconds a pair, database of {n:,} | {value:.1f} |" for n, value in curve.items()),
        *(f"| peak memory, {name} | {value:.0f} MB |" for name, value in memory.items()),
    ]  # fmt: skip
    report("evaluation", result, "\n".join(lines))


if __name__ == "__main__":
    main()
