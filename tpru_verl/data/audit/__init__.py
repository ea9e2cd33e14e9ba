"""Shortcuts: how far rules that do not understand a row get to its answer."""
