"""Mends of veRL 0.9.1 that hold on every device. Each says what it mends and is off, aloud, if that is gone.

| veRL 0.9.1 | here |
| --- | --- |
| a batch of sequences of one length crashes with 3-D position ids | `equal_length_position_ids` |
| without flash-attn, log-probabilities are computed token by token in Python | `log_probs_in_chunks` |
| the trainer looks for finished rollouts every 2.0 s | `prompt_polling` |
| a dead agent-loop worker leaves the trainer waiting for ever | `notice_dead_actors` |
| the n samples of a prompt are n calls that carry its images | `generate_group` |
| a failed weight update leaves the sender waiting for ever | `notice_failed_weight_update` |
| with one mini-batch a step, the actor's pass runs twice for one log-probability | `on_policy` |
| a prompt's images are encoded again for each of its samples | `vision.share_images` |
| TransferQueue carries a prompt's pixel values once for each of its samples | `one_copy_in_transfer` |
| a missing model or too little room comes out minutes later, in a worker | `check_before_start` |
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, cast

from tpru_verl.launch import checks as launch
from tpru_verl.plugin import on_policy, vision
from tpru_verl.plugin.hooks import replace, require, when_imported

if TYPE_CHECKING:
    import torch
    import zmq
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from tensordict import TensorDict

# 1,024 rows of Qwen2.5-VL's 151,936 logits are 0.6 GB in float32.
TOKENS_A_CHUNK = 1024
POLL_SECONDS = 0.1
LIVENESS_SECONDS = 5.0

_watched: list[ActorHandle] = []


def apply() -> None:
    """Arm the mends; nothing is imported here."""
    when_imported("verl.utils.device")(check_before_start)
    when_imported("verl.utils.tensordict_utils")(equal_length_position_ids)
    when_imported("verl.utils.torch_functional")(log_probs_in_chunks)
    when_imported("verl.trainer.ppo.v1.replay_buffer")(prompt_polling)
    when_imported("verl.trainer.ppo.v1.replay_buffer")(notice_dead_actors)
    when_imported("verl.trainer.ppo.v1.trainer_base")(on_policy.skip_old_log_probs)
    when_imported("verl.workers.utils.losses")(on_policy.own_log_probs)
    for modeling in vision.TOWERS:
        when_imported(modeling)(vision.share_images)
    when_imported("transfer_queue.utils.serial_utils")(one_copy_in_transfer)
    when_imported("verl.workers.rollout.vllm_rollout.vllm_rollout")(notice_failed_weight_update)
    when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server")(generate_group)


def check_before_start(device: ModuleType) -> None:
    """`auto_set_device` is the first thing that main_ppo calls with its configuration. For runs on our
    dataset, look at the machine (`launch.check`) then, and end with one line instead of a worker's traceback.
    """
    require(device, "auto_set_device")
    original = device.auto_set_device

    def auto_set_device(config: Mapping) -> None:
        original(config)
        dataset = config.get("data", {}).get("custom_cls", {})
        if dataset and str(dataset.get("path", "")).startswith("pkg://tpru_verl."):
            try:
                launch.check_platform(config)
                launch.check(config)
            except (OSError, RuntimeError, ValueError) as error:
                sys.exit(f"tpru: {error}")

    replace(device, "auto_set_device", auto_set_device)


def equal_length_position_ids(tensordict_utils: ModuleType) -> None:
    """mRoPE position ids, [batch, 3 or 4, ragged length], lose their ragged dimension when all lengths agree.

    Built from tensors [3, L] of one L, a jagged tensor takes the first dimension that it may for the ragged
    one: the 3, not L. `maybe_fix_3d_position_ids` then writes index 2 over it without moving the values, and
    the next `unbind` raises `split_with_sizes expects split_sizes to sum exactly to ...`.
    """
    import torch

    require(tensordict_utils, "maybe_fix_3d_position_ids")
    original = tensordict_utils.maybe_fix_3d_position_ids

    def maybe_fix_3d_position_ids(data: TensorDict) -> None:
        position_ids = data.get("position_ids", None)
        if position_ids is None or not position_ids.is_nested or position_ids.dim() != 3:
            return original(data)
        values, offsets = position_ids.values(), position_ids.offsets()
        if values.shape[0] <= 4 and values.shape[-1] == int(offsets[-1]):
            return original(data)  # [3 or 4, all lengths]: really ragged in length
        rows = values.split(offsets.diff().tolist(), dim=0)
        lengths = torch.tensor([0] + [row.shape[-1] for row in rows], device=offsets.device)
        data["position_ids"] = torch.nested.nested_tensor_from_jagged(
            torch.cat(rows, dim=-1), offsets=lengths.cumsum(0), jagged_dim=2
        )
        return None

    replace(tensordict_utils, "maybe_fix_3d_position_ids", maybe_fix_3d_position_ids)


def log_probs_in_chunks(torch_functional: ModuleType) -> None:
    """Without flash-attn's cross entropy veRL walks over the rows of the logits, to bound memory. Packed
    sequences have a row a token: thousands of graph nodes for a batch that fits one call. In float32, as
    vLLM computes them; stock veRL rounds each to the logits' bfloat16.
    """
    import torch

    require(torch_functional, "logprobs_from_logits_v2", "logprobs_from_logits")
    original = torch_functional.logprobs_from_logits_v2

    def logprobs_from_logits_v2(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.dim() != 2:
            return original(logits, labels)
        chunks = zip(logits.split(TOKENS_A_CHUNK), labels.split(TOKENS_A_CHUNK), strict=True)
        return -torch.cat(
            [torch.nn.functional.cross_entropy(rows.float(), of, reduction="none") for rows, of in chunks]
        )

    replace(torch_functional, "logprobs_from_logits_v2", logprobs_from_logits_v2)


def prompt_polling(replay_buffer: ModuleType) -> None:
    """`ReplayBuffer` asks for finished rollouts every 2.0 s, which no key of the config changes: steps of
    a few seconds come in multiples of two.
    """
    require(replay_buffer.ReplayBuffer, "_wait_for_next_poll", "__init__")
    original = replay_buffer.ReplayBuffer.__init__

    def __init__(self, *args: object, **kwargs: object) -> None:  # noqa: N807
        original(self, *args, **{"poll_interval": POLL_SECONDS, **kwargs})

    replay_buffer.ReplayBuffer.__init__ = __init__


def watch(actors: list[ActorHandle]) -> None:
    """Have the trainer's wait for rollouts end with an error when one of `actors` dies."""
    _watched.extend(actors)


def notice_dead_actors(replay_buffer: ModuleType) -> None:
    """Rollouts are fire-and-forget: when the worker that runs them dies, nobody tells the trainer, which
    polls for ever. While it waits, ask the workers (`watch`) whether they live.
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


def one_copy_in_transfer(serial_utils: ModuleType) -> None:
    """A message of TransferQueue lays down the memory of a tensor once for each place that it has in the
    message. Laid down once, the n samples of a prompt share its pixel values on the way, in the storage,
    whose values point into the messages it got, and in the worker that fetches them.
    """
    from contextvars import ContextVar

    encoder = serial_utils.MsgpackEncoder
    require(encoder, "encode", "_encode_regular_tensor")
    encode, encode_tensor = encoder.encode, encoder._encode_regular_tensor
    laid_down: ContextVar[dict[tuple[object, ...], object]] = ContextVar("laid_down")

    def encode_sharing(self, obj: object):
        token = laid_down.set({})
        try:
            return encode(self, obj)
        finally:
            laid_down.reset(token)

    def _encode_regular_tensor(self, obj: torch.Tensor):
        # Others are copied first, and the memory of the original may be another tensor's by now.
        if obj.device.type != "cpu" or not obj.is_contiguous():
            return encode_tensor(self, obj)
        known, place = laid_down.get(), (obj.data_ptr(), obj.dtype, obj.shape)
        if place not in known:
            known[place] = encode_tensor(self, obj)
        return known[place]

    encoder.encode = encode_sharing
    encoder._encode_regular_tensor = _encode_regular_tensor


def notice_failed_weight_update(vllm_rollout: ModuleType) -> None:
    """The sender of new weights blocks on a socket until vLLM acknowledges; when vLLM's side has raised or
    died, it blocks for ever. Give the socket a time-out and, each time, look at what became of vLLM's call.
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


def generate_group(vllm_async_server: ModuleType) -> None:
    """Give veRL's vLLM server a call for all samples of a prompt: n calls would carry its images n times.

    `final_only` spares the server's event loop a wake-up per token and request. Not for the asynchronous
    trainers: their pause counts a request as admitted at its first output.
    """
    from vllm.sampling_params import RequestOutputKind

    server = vllm_async_server.vLLMHttpServer
    require(server, "generate")

    async def generate_group(
        self,
        n: int,
        *,
        request_id: str,
        sampling_params: dict,
        final_only: bool,
        **prompt: object,
    ):
        params = {**sampling_params, "detokenize": False}  # veRL reads token ids alone
        if final_only:
            params["output_kind"] = RequestOutputKind.FINAL_ONLY
        samples = (
            self.generate(request_id=f"{request_id}-{i}", sampling_params=dict(params), **prompt)
            for i in range(n)
        )
        return await asyncio.gather(*samples)

    server.generate_group = generate_group
