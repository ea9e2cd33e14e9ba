"""Counts the tokens of prompts from the headers of their images, and prepares images as training does."""
