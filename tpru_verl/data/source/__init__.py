"""Reads rows: files, folders and Hub ids, in each form of columns that is met."""

__all__ = ["forms", "rows"]
