"""The search page: ``python -m stages serve``."""
