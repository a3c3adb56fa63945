"""What each bit of the codes means, in concepts and components, and how well the components recover what is known.

Reads data/codes.h5, data/features.h5, data/concepts.parquet, data/components.h5 and, where there are some, the labels
of data/images. Writes reports/explain/bits.parquet (correlation of every bit with every concept and component),
reports/explain/hierarchy.parquet (how the concepts drift from coarse to fine components), reports/explain.json,
reports/bit_concepts.png and reports/hierarchy.png.

With --image FILE or --id N it explains the code of one image instead, with the tables that the stage has written.
"""

from stages.params import Frozen


class Params(Frozen):
    """This stage reads no key of ``params.yaml``."""
