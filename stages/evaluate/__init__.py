"""Retrieval metrics, curves and pictures of the hash codes."""
