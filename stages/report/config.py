"""One page that shows the whole run, and a summary of it for pull requests.

Reads what the other stages have written: data/images, data/dataset.json, data/codes.h5, data/map.parquet,
data/concepts.parquet, data/components.h5, models/ and reports/. Writes reports/index.html, which needs no network and
no other file, and reports/summary.md. Mean average precisions have bootstrap confidence intervals over the queries.
The same inputs give the same bytes.

With --timings FILE.html it writes the page there instead, with how long each stage took on this machine, and how much
memory.
"""

from stages.params import Frozen


class Params(Frozen):
    """This stage reads no key of ``params.yaml``."""
