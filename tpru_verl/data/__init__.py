"""Rows in: sources, validation, prepared shards, token counts, statistics, a gallery, shortcuts."""

__all__ = ["checks", "prepare", "source", "stats", "validate"]
