"""Rows in: sources, validation, prepared shards, token counts, statistics, a gallery, shortcuts."""
