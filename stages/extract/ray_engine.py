"""``extract.engine: ray``: the row groups are encoded by the actors of a Ray cluster; the file is the same."""

from functools import partial

from stages.clip import MIXED, ClipModel, load_clip
from stages.extract.config import Params
from stages.extract.parts import Parts
from stages.extract.pixels import encode_row_groups
from stages.images import ImageShards, RowGroup
from stages.parts import content_of
from stages.ray_pool import Work, ray_machines, run_row_groups


def extract(shards: ImageShards, params: Params) -> None:
    """As :func:`stages.extract.pixels.extract`; an actor has a GPU and a core for each process that decodes, or a core.

    Raises:
        InputError: as there, or Ray is not installed.
        OutsideError: Ray does not answer or broke down.
    """
    with ray_machines() as machines:
        device = machines.device(params.device)
        on_gpu = device == "cuda"
        # Of one core, an actor has no others to wait for while it decodes.
        options = params.extract if on_gpu else params.extract.model_copy(update={"workers": 0})
        params = params.model_copy(update={"device": device, "extract": options})
        precision = MIXED if on_gpu and options.precision == "auto" else options.precision
        parts = Parts.of(shards, load_clip(device="cpu", precision=precision), options)
        run_row_groups(
            begin, (params,), parts.missing(), machines, 1 + options.workers, on_gpu, "extract",
        )  # fmt: skip
    parts.join()


def begin(params: Params) -> Work:
    """What an actor works with."""
    return partial(_encoded, load_clip(device=params.device, precision=params.extract.precision), params)


def _encoded(clip: ClipModel, params: Params, group: RowGroup) -> bytes:
    made: list[bytes] = []
    encode_row_groups(clip, {group[0]: group}, params, lambda _, **arrays: made.append(content_of(**arrays)))
    return made[0]
