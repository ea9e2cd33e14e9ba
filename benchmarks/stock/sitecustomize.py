"""Skips the plugin's patches for speed in every process of a run; those that a CPU needs stay.

With this folder in PYTHONPATH Python imports this file when it starts, before veRL and vLLM.
"""

import os

from tpru_verl.plugin import hooks

FOR_SPEED = {
    "log_probs_in_chunks",
    "one_copy_in_transfer",
    "one_part_needs_no_balance",
    "only_server",
    "own_log_probs",
    "process_group_once",
    "prompt_polling",
    "share_images",
    "share_prompts",
    "skip_old_log_probs",
    "vision_tower_without_loops",
    "wait_asleep",
    "without_sklearn",
}
if os.environ.get("VERL_PLATFORM") != "cpu":
    # On a GPU others run stock veRL with flash-attn, which has no loop over tokens either; without the
    # package the comparison would be with that loop. With it the patch changes nothing.
    FOR_SPEED.remove("log_probs_in_chunks")
hooks.skipped |= FOR_SPEED
