"""Frames in, rows out: sources, filters, descriptions, tasks, negatives, splits and a manifest."""
