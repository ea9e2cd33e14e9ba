"""Turns the plugin's mends for speed off in every process of veRL; those that a CPU needs to run at all stay.

Imported by veRL itself, before its plugins: VERL_USE_EXTERNAL_MODULES=stock, with this folder in PYTHONPATH.
"""

from tpru_verl.plugin import hooks

FOR_SPEED = {
    "log_probs_in_chunks",
    "prompt_polling",
    "skip_old_log_probs",
    "own_log_probs",
    "share_images",
    "vision_tower_without_loops",
}

for module, mends in hooks._mends.items():
    hooks._mends[module] = [mend for mend in mends if getattr(mend, "__name__", "") not in FOR_SPEED]
