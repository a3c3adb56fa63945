"""Packed binary codes of the queries and the database.

Reads models/hashnet, data/features.h5, which a head encodes, and data/images, which a backbone encodes and which has
the splits. Writes data/codes.h5.

A backbone's codes of all images are made row group by row group: an encoding that was killed goes on where it stopped,
and with encode.engine: ray the machines of a Ray cluster share it.
"""

from stages.params import Device, Engine, Frozen


class Encode(Frozen):
    """Section ``encode``."""

    engine: Engine  # of a backbone


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    device: Device
    encode: Encode
