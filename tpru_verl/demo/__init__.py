"""The embedded example: a scene generator, a tiny model and its training, small enough for two CPU cores."""

__all__ = ["run", "scenes", "tiny_families", "tiny_model"]
