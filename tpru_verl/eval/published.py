"""Accuracies that were published, in %, to stand beside a run.

Source of every number: the result tables of the TPRU paper, whose authors ran them. They were scored by
VLMEvalKit's rules and with its resolutions where docs/evaluation.md says so: near is not the same.
"""

from __future__ import annotations

SOURCE = "TPRU paper, result tables"

# Benchmark -> model -> accuracy over all rows.
OVERALL: dict[str, dict[str, float]] = {
    "tpru-test": {
        "GPT-4o": 67.68,
        "GPT-4.1": 57.70,
        "Gemini-2.5-Flash": 65.15,
        "Claude-3.5-Sonnet": 56.40,
        "Qwen2.5-VL-3B": 37.96,
        "Qwen2.5-VL-7B": 50.33,
        "Qwen2.5-VL-32B": 60.95,
        "Qwen2.5-VL-72B": 72.67,
        "TPRU-3B": 63.78,
        "TPRU-7B": 75.70,
        "TPRU-32B": 70.05,
    },
    "muirbench": {
        "GPT-4o": 68.00,
        "Qwen2.5-VL-7B": 58.35,
        "TPRU-3B": 59.31,
        "TPRU-7B": 65.04,
        "TPRU-32B": 68.42,
    },
    "lego-puzzles": {
        "GPT-4o": 57.7,
        "Qwen2.5-VL-7B": 36.5,
        "TPRU-3B": 35.2,
        "TPRU-7B": 42.8,
        "TPRU-32B": 52.3,
    },
    "mme-realworld-lite": {"TPRU-7B": 45.34},
    "blink": {"TPRU-7B": 55.86},
    "realworldqa": {"TPRU-7B": 69.54},
    "mmcr": {"TPRU-7B": 23.91},
    "mmtbench": {"TPRU-7B": 61.85},
    "mmstar": {"TPRU-7B": 61.13},
    "mmmu-dev": {"TPRU-7B": 47.00},
}

# The ordering task alone.
ORDERING: dict[str, dict[str, float]] = {
    "muirbench": {
        "GPT-4o": 23.44,
        "Qwen2.5-VL-7B": 14.06,
        "TPRU-3B": 23.44,
        "TPRU-7B": 34.38,
        "TPRU-32B": 45.31,
    },
    "lego-puzzles": {
        "GPT-4o": 72.0,
        "Qwen2.5-VL-7B": 8.0,
        "TPRU-3B": 8.0,
        "TPRU-7B": 32.0,
        "TPRU-32B": 49.0,
    },
}
