"""TPRU on veRL and EasyR1: temporal and procedural understanding for vision-language models."""

__version__ = "0.2.0"
