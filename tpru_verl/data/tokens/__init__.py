"""Counts the tokens of prompts from image headers, without decoding an image."""
