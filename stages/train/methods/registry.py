"""The methods by their names in ``params.yaml``; one more is a module here and a name in ``stages.params.Method``."""

from stages.train.methods.bihalf import BiHalf
from stages.train.methods.cibhash import CibHash
from stages.train.methods.dsch import Dsch
from stages.train.methods.duh_eg import DuhEg
from stages.train.methods.fused import Fused
from stages.train.methods.greedyhash import GreedyHash
from stages.train.methods.objective import Objective
from stages.train.methods.sdc import Sdc
from stages.train.methods.uhscm import Uhscm

METHODS: dict[str, type[Objective]] = {
    "uhscm": Uhscm,
    "dsch": Dsch,
    "fused": Fused,
    "greedyhash": GreedyHash,
    "bihalf": BiHalf,
    "cibhash": CibHash,
    "sdc": Sdc,
    "duh_eg": DuhEg,
}
