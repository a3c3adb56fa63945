"""Offline mode: with one of these environment variables set, nothing touches the network."""

import os

VARIABLES = ("CONCEPTBITS_OFFLINE", "HF_HUB_OFFLINE")


def offline() -> str | None:
    """The variable that forbids the network, if one does: ``1``, ``true``, ``yes`` or ``on``."""
    return next((name for name in VARIABLES if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")), None)
