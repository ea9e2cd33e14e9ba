"""Patches for a run that can be repeated (the overlay `reproducible`). docs/patches.md lists all patches.

veRL's `rollout.full_determinism` (pull request 6572) sets the variable ON in all of its processes. Without it
the patches do nothing. veRL gives all requests one seed, so that the samples of a prompt would be equal; our
agent loop gives each a seed of its own.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tpru_verl.plugin.hooks import require

if TYPE_CHECKING:
    from tensordict import TensorDict

ON = "VERL_FULL_DETERMINISM"
ONE_SEED = (
    "rollout.full_determinism: veRL's own agent loop gives all samples of a prompt one seed, so that they "
    "are equal; expected a single turn with vLLM and trainer.v1.trainer_mode=sync, or a run without "
    "+tpru=reproducible"
)


def is_on() -> bool:
    return os.environ.get(ON) == "1"


def seeds(seed: int, prompt: Mapping[str, Any], n: int, validate: bool) -> list[int]:
    """A seed of 56 bits for each of n samples: the same in each run for one seed, step, row and sample."""
    info = prompt.get("extra_info") or {}
    row = info.get("row_id") or info.get("place") or prompt.get("index")
    of = (seed, int(prompt["global_steps"]), validate, str(row))
    texts = [repr((*of, sample)) for sample in range(n)]
    return [int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") for text in texts]


def same_uids(trainer_base: ModuleType) -> None:
    """Stock veRL draws the uids of prompts at random, also with `full_determinism`.

    The patch makes them of the step and of the prompt's place in it. They route the prompt to a server, and
    `same_order` sorts by them.
    """
    from verl.utils.tensordict_utils import assign_non_tensor_stack

    trainer = trainer_base.PPOTrainer
    require(trainer, "_fetch_one_gen_batch")
    original = trainer._fetch_one_gen_batch

    def _fetch_one_gen_batch(self: Any) -> TensorDict:
        batch = original(self)
        if is_on():
            step, first = getattr(self, "_tpru_fetched", (0, 0))
            first = first if step == self.global_steps else 0
            self._tpru_fetched = (self.global_steps, first + len(batch))
            places = range(first, first + len(batch))
            assign_non_tensor_stack(batch, "uid", [f"{self.global_steps:07}-{place:06}" for place in places])
        return batch

    trainer._fetch_one_gen_batch = _fetch_one_gen_batch


def same_order(replay_buffer: ModuleType) -> None:
    """Stock veRL trains on the answers in the order in which their prompts were finished.

    The sums of an update then differ from run to run. The patch sorts the answers by prompt and sample.
    """
    buffer = replay_buffer.ReplayBuffer
    require(buffer, "_materialize_batch")
    original = buffer._materialize_batch

    def _materialize_batch(
        self: Any, partition_id: str, uids: list[str], snapshot: dict[str, dict]
    ) -> object:
        if is_on():
            snapshot = {key: snapshot[key] for key in sorted(snapshot, key=_place)}
        return original(self, partition_id, uids, snapshot)

    buffer._materialize_batch = _materialize_batch


def _place(key: str) -> tuple[str, int, int]:
    """veRL's key is the prompt's uid, the number of the sample, and that of its output."""
    uid, sample, output = key.rsplit("_", 2)
    return uid, int(sample), int(output)
