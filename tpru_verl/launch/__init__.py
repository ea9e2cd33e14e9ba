"""A run before it starts and while it goes: settings, plan, checks, reward trial, start and watch."""

__all__ = ["plan", "run", "settings", "train"]
