"""Packed binary codes of the queries and the database.

Reads data/features.h5, data/images (which image is in which split) and models/hashnet, writes data/codes.h5.
"""

from stages.params import Device, Frozen


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    device: Device
