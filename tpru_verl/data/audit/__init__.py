"""Shortcuts: how often simple rules find the answers of rows without understanding them."""
