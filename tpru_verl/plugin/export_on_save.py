"""A callback of veRL 0.9.1 that exports each checkpoint: `trainer.checkpoint_callback_class` names it.

Source of the interface: verl/trainer/ppo/checkpoint_callback.py.
"""

from __future__ import annotations

import logging
from pathlib import Path

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from tpru_verl.runs.export import chosen, export

logger = logging.getLogger("tpru_verl")


class ExportOnSave(CheckpointCallback):
    """Writes `exported/global_step_N` beside the checkpoints. vLLM has the GPU, so it takes no part."""

    def on_save(
        self,
        trainer: object,
        global_step: int,
        checkpoint_dir: str,
        async_save: bool = False,
        **kwargs: object,
    ) -> None:
        """A failure is a warning: the checkpoint is there, and can be exported later."""
        folder = Path(checkpoint_dir)
        out = folder.parent / "exported" / folder.name
        try:
            export(folder.parent, chosen(folder), out, vllm=False, say=logger.info)
        except (OSError, RuntimeError, ValueError) as error:
            logger.warning("%s was not exported: %s", folder, error)
