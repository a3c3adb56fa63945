"""Numbers that others have published, for runs of the protocol that they were measured with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Published:
    """What may be shown beside a run.

    Attributes:
        why: what the numbers are and how they differ from the run; or why there are none.
        metric: key of the run's metrics that they compare with, mAP@k; cutoff: that k.
        rows: (method, bits, value).
    """

    why: str
    metric: str = ""
    cutoff: int = 0
    rows: tuple[tuple[str, int, float], ...] = ()


def published(dataset: str, protocol: str, model: str | None, metrics: Mapping[str, Any], bits: int) -> Published:
    """The published numbers for a run of `protocol` on `dataset`, if there are any that compare."""
    known = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    if dataset not in known["datasets"]:
        names = ", ".join(sorted(known["datasets"]))
        return Published(f"None: nobody has published numbers on {dataset} that are known here; there are some for "
                         f"{names}.")  # fmt: skip
    found = known["datasets"][dataset]
    metric = f"map_at_{found['cutoff']}_stable"
    if protocol not in found["protocols"]:
        return Published(f"None: those for {dataset} are of the protocol {' or '.join(found['protocols'])}, and this "
                         f"run's is {protocol}.")  # fmt: skip
    if metric not in metrics:
        return Published(f"None: those for {dataset} are mAP@{found['cutoff']:,}, which this run has not measured.")
    other = [] if is_of(model, known["features"]) else [f"its features are of {model or 'no CLIP'}"]
    other += [f"its codes have {bits} bits"] if bits not in {row["bits"] for row in found["rows"]} else []
    but = f" This run differs: {' and '.join(other)}." if other else ""
    rows = tuple((row["method"], row["bits"], row["map"]) for row in found["rows"])
    return Published(f"For orientation, {known['source']}.{but}", metric, found["cutoff"], rows)


def is_of(model: str | None, names: Sequence[str]) -> bool:
    """Whether `model` has one of these `names`; one that begins with a slash is a part of the name at a hub."""
    return model is not None and any(model == name or (name[0] == "/" and name in model) for name in names)
