"""Packed binary codes of the queries and the database.

Reads models/hashnet, data/features.h5, which a head encodes, and data/images, which a backbone encodes and which has
the splits. Writes data/codes.h5.
"""

from stages.params import Device, Frozen


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    device: Device
