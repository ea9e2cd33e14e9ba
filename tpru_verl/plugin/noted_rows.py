"""Notes beside the responses that veRL dumps, which name no row: which row each prompt was made from.

`tpru report` reads them for scenes and pictures, where several rows have the same text.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)


class RowNotes:
    """Appends a line {"uid", "place"} for each prompt; a file for each process, in the folder of the dump.

    `rollouts` and `validation` are veRL's `trainer.rollout_data_dir` and `trainer.validation_data_dir`.
    """

    def __init__(self, rollouts: str | None, validation: str | None) -> None:
        self._folders = {False: rollouts, True: validation}
        self._name = f"rows-{socket.gethostname()}-{os.getpid()}.jsonl"

    def note(self, prompt: Mapping[str, object], validate: bool) -> None:
        """Where nothing can be written, the run goes on without notes."""
        folder, extra = self._folders[validate], prompt.get("extra_info")
        place = extra.get("place") if isinstance(extra, Mapping) else None
        if not folder or not place:
            return
        try:
            path = Path(folder)
            path.mkdir(parents=True, exist_ok=True)
            with (path / self._name).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"uid": prompt["uid"], "place": place}) + "\n")
        except OSError as error:
            logger.warning("%s: no notes of rows from now on (%s)", folder, error)
            self._folders[validate] = None
