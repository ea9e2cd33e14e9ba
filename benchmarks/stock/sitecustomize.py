"""Skips the plugin's patches for speed in every process of a run; those that a CPU needs stay.

With this folder in PYTHONPATH Python imports this file when it starts, before veRL and vLLM.
"""

from tpru_verl.plugin import hooks

FOR_SPEED = {
    "log_probs_in_chunks",
    "one_copy_in_transfer",
    "own_log_probs",
    "prompt_polling",
    "share_images",
    "skip_old_log_probs",
    "vision_tower_without_loops",
    "wait_asleep",
}
hooks.skipped |= FOR_SPEED
