"""One page that shows the whole run, and a summary of it for pull requests.

Reads what the other stages have written: data/images, data/dataset.json, data/codes.h5, data/concepts.parquet,
data/components.h5, models/ and reports/; and, where there are some, the times in reports/timings/. Writes
reports/index.html, which needs no network and no other file, and reports/summary.md. Mean average precisions have
bootstrap confidence intervals over the queries. The same inputs give the same bytes.
"""

from stages.params import Frozen


class Params(Frozen):
    """This stage reads no key of ``params.yaml``."""
