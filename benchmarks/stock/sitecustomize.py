"""Turns the plugin's mends for speed off in every process of a run; those that a CPU needs stay.

With this folder in PYTHONPATH Python imports this file when it starts, so before veRL and vLLM.
"""

from types import ModuleType

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
run = hooks._run


def run_what_is_needed(mend: hooks.Mend, module: ModuleType) -> None:
    if getattr(mend, "__name__", "") not in FOR_SPEED:
        run(mend, module)


hooks._run = run_what_is_needed
