"""Patches for waits of veRL 0.9.1 that take too long or never end. docs/patches.md lists all patches."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from tpru_verl.plugin.hooks import replace, require
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    import zmq
    from ray import ObjectRef
    from ray.actor import ActorHandle

POLL_SECONDS = 0.1
SHORTEST_POLL = 0.2  # of the usual wait
WAIT_PER_LOOK = 5.0  # a look fetches the tags of all samples: with thousands of them it takes long
# A worker's death is seen at the second look after it, at the latest.
LIVENESS_SECONDS = 1.0
ERROR = "tpru_error"  # in the tag of a prompt that no epoch could run: why, and which row it is

_watched: list[ActorHandle] = []


def prompt_polling(replay_buffer: ModuleType) -> None:
    """Stock veRL looks for finished rollouts every 2.0 s, and no key of its configuration changes that.

    Steps of a few seconds then last a multiple of two. The patch looks every `POLL_SECONDS`, and the more
    often the fewer prompts are left, because a step waits for the last one. Looks take a sixth of the time at
    most, unless `POLL_SECONDS` is shorter than they want.
    """
    require(replay_buffer.ReplayBuffer, "_wait_for_next_poll", "__init__")
    original = replay_buffer.ReplayBuffer.__init__
    wait = replay_buffer.ReplayBuffer._wait_for_next_poll

    def __init__(self, *args: object, **kwargs: object) -> None:  # noqa: N807
        original(self, *args, **{"poll_interval": POLL_SECONDS, **kwargs})

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        longest = self.poll_interval
        looked = time.monotonic() - getattr(self, "waited_until", time.monotonic())
        wanted = max(longest * max(SHORTEST_POLL, _share_left(self, partition_id)), WAIT_PER_LOOK * looked)
        self.poll_interval = min(longest, wanted)
        try:
            return wait(self, partition_id, last_debug_time)
        finally:
            self.poll_interval, self.waited_until = longest, time.monotonic()

    replay_buffer.ReplayBuffer.__init__ = __init__
    replay_buffer.ReplayBuffer._wait_for_next_poll = _wait_for_next_poll


def _share_left(buffer: Any, partition_id: str) -> float:
    """Of all prompts, those whose rollouts have not ended; 1 where all have, which waits for new ones."""
    left, ended = (
        sum(len(keys[partition_id]) for keys in both)
        for both in ((buffer.pending_keys, buffer.running_keys), (buffer.finished_keys, buffer.failure_keys))
    )
    return left / (left + ended) if left else 1.0


def watch(actors: list[ActorHandle]) -> None:
    """End the trainer's wait for rollouts with an error when one of `actors` dies."""
    _watched.extend(actors)


def notice_dead_actors(replay_buffer: ModuleType) -> None:
    """Stock veRL waits for ever for the rollouts of a worker that has died, because nobody tells the trainer.

    While the trainer waits, it now asks the workers of `watch` whether they live.
    """
    require(replay_buffer.ReplayBuffer, "_wait_for_next_poll")
    original = replay_buffer.ReplayBuffer._wait_for_next_poll
    check = _liveness_check()

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        check()
        return original(self, partition_id, last_debug_time)

    replay_buffer.ReplayBuffer._wait_for_next_poll = _wait_for_next_poll


def _liveness_check() -> Callable[[], None]:
    answers: dict[ObjectRef, ActorHandle] = {}
    asked_at = 0.0

    def check() -> None:
        nonlocal asked_at
        if time.monotonic() - asked_at < LIVENESS_SECONDS:
            return
        import ray
        from ray.exceptions import RayActorError

        asked_at = time.monotonic()
        answered, _ = ray.wait(list(answers), num_returns=len(answers), timeout=0) if answers else ([], [])
        for ref in answered:
            actor = answers.pop(ref)
            try:
                ray.get(ref)
            except RayActorError as error:
                raise RuntimeError(
                    f"a rollout worker died while the trainer waited for it: {error}"
                ) from error
            answers[actor.__ray_ready__.remote()] = actor
        for actor in _watched:
            if actor not in answers.values():
                answers[actor.__ray_ready__.remote()] = actor

    return check


def said(error: Exception) -> str:
    """What an error of another process says. Ray puts its traceback first, long after an engine's death."""
    from ray.exceptions import RayActorError

    text = str(error).strip()
    return " ".join(text.split()) if isinstance(error, RayActorError) else text.rpartition("\n")[2]


def reason_of(error: Exception) -> str:
    """What an error says, in one line, with its kind where the text alone says little."""
    text = line_of(error)
    return text if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: {text}"


class RefusedError(ValueError):
    """vLLM takes no such request, and would refuse it in the next epoch, too."""


def ends_run(error: Exception, row: str) -> str:
    """Why the run ends with a rollout that failed; "" where the others go on without it."""
    if died := who_died(error):
        return f"{died} has died: killed, or out of memory"
    return f"{row}: vLLM refuses the prompt ({said(error)})" if isinstance(error, RefusedError) else ""


def who_died(error: Exception) -> str:
    """vLLM's engine, or a Ray actor that the rollout needs: every other prompt will fail, too. Else ""."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if "RayActorError" in names:
        found = dict(re.findall(r"\b(class_name|pid): (\S+)", str(error)))
        name = found.get("class_name", "a worker").rpartition(".")[2]
        return f"{name} (pid {found.get('pid', 'unknown')})"
    return "vLLM's engine" if "EngineDeadError" in names else ""


def notice_broken_prompts(replay_buffer: ModuleType) -> None:
    """Stock veRL trains on without a prompt that fails, in every epoch again, and only the log tells.

    A prompt that `plugin/agent_loop.py` cannot prepare, or that vLLM refuses, has the reason in its tag
    `ERROR`. The trainer now ends with that reason. Other rollouts that fail in vLLM leave the rest alone.
    """
    require(replay_buffer.ReplayBuffer, "_sync_metadata_from_transfer_queue")
    original = replay_buffer.ReplayBuffer._sync_metadata_from_transfer_queue

    def _sync_metadata_from_transfer_queue(self) -> None:
        original(self)
        if not any(self.failure_keys.values()):
            return
        for tags in (replay_buffer.tq.kv_list() or {}).values():
            for tag in tags.values():
                if error := tag.get(ERROR):
                    raise RuntimeError(error)

    replay_buffer.ReplayBuffer._sync_metadata_from_transfer_queue = _sync_metadata_from_transfer_queue


def notice_failed_weight_update(vllm_rollout: ModuleType) -> None:
    """Stock veRL's sender of weights waits for ever on its socket when vLLM's side has raised or died.

    The socket now has a time-out. After each, the sender asks what became of the call to vLLM.
    """
    import ray
    import zmq

    require(vllm_rollout, "BucketedWeightSender", "ServerAdapter")
    require(vllm_rollout.ServerAdapter, "_execute_method")
    require(vllm_rollout.BucketedWeightSender, "_init_socket")
    execute = vllm_rollout.ServerAdapter._execute_method
    pending: list[ObjectRef] = []

    async def _execute_method(self, method: str, non_block: bool = False, **kwargs: object):
        result = await execute(self, method, non_block=non_block, **kwargs)
        pending[:] = [result] if non_block and result is not None else []
        return result

    class PatientSocket:
        def __init__(self, socket: zmq.Socket) -> None:
            self._socket = socket
            self.close = socket.close

        def send_pyobj(self, message: object) -> None:
            self._wait(zmq.POLLOUT)  # sending, too, blocks until vLLM has connected
            self._socket.send_pyobj(message)

        def recv(self) -> bytes:
            self._wait(zmq.POLLIN)
            return self._socket.recv()

        def _wait(self, event: int) -> None:
            while not self._socket.poll(int(LIVENESS_SECONDS * 1000), event):
                for ref in ray.wait(pending, timeout=0)[0] if pending else []:
                    ray.get(ref)  # raises what vLLM raised, or that it died

    class WatchfulSender(vllm_rollout.BucketedWeightSender):
        def _init_socket(self) -> None:
            super()._init_socket()
            self.socket = PatientSocket(cast("zmq.Socket", self.socket))

    vllm_rollout.ServerAdapter._execute_method = _execute_method
    replace(vllm_rollout, "BucketedWeightSender", WatchfulSender)
