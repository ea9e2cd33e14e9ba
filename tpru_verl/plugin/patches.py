"""Patches for veRL 0.9.1 on every device. A patch whose target has changed logs a warning and is skipped.

docs/patches.md lists them all: what goes wrong without the patch, what it does, and its test.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from tpru_verl.plugin import (
    adapters,
    checkpoints,
    early,
    forks,
    gdpo,
    linear_attention,
    on_policy,
    pictured,
    prefixes,
    records,
    reproducible,
    sharing,
    vision,
    vllm_process,
    waiting,
)
from tpru_verl.plugin.hooks import replace, require, when_imported

if TYPE_CHECKING:
    import torch
    from tensordict import TensorDict

# 1,024 rows of Qwen2.5-VL's 151,936 logits are 0.6 GB in float32.
TOKENS_A_CHUNK = 1024


def register() -> None:
    """Register the patches; nothing is imported here."""
    when_imported("verl.trainer.constants_ppo")(forks.fork_workers)
    when_imported("vllm.utils.system_utils")(forks.fork_engine)
    when_imported("verl.utils.device")(check_before_start)
    when_imported("transformers.utils")(vllm_process.without_sklearn)
    when_imported("verl.utils.tensordict_utils")(equal_length_position_ids)
    when_imported("verl.utils.torch_functional")(log_probs_in_chunks)
    when_imported("verl.trainer.ppo.v1.replay_buffer")(waiting.prompt_polling)
    when_imported("verl.trainer.ppo.v1.replay_buffer")(waiting.notice_dead_actors)
    when_imported("verl.trainer.ppo.v1.replay_buffer")(waiting.notice_broken_prompts)
    when_imported("verl.workers.rollout.vllm_rollout.vllm_rollout")(waiting.notice_failed_weight_update)
    when_imported("verl.trainer.ppo.v1.replay_buffer")(checkpoints.ask_while_waiting)
    when_imported("verl.trainer.ppo.v1.trainer_base")(on_policy.skip_old_log_probs)
    when_imported("verl.trainer.ppo.v1.trainer_base")(records.sample_answers)
    when_imported("verl.trainer.ppo.v1.trainer_base")(pictured.validation_pictures)
    when_imported("verl.trainer.ppo.v1.trainer_base")(checkpoints.remove_after_save)
    when_imported("verl.trainer.ppo.v1.trainer_base")(checkpoints.save_when_asked)
    when_imported("verl.utils.checkpoint.fsdp_checkpoint_manager")(checkpoints.configured_rates)
    when_imported("verl.trainer.ppo.v1.trainer_base")(reproducible.same_uids)
    when_imported("verl.trainer.ppo.v1.replay_buffer")(reproducible.same_order)
    when_imported("transfer_queue")(early.start_servers_first)
    when_imported("verl.trainer.ppo.v1.trainer_base")(early.start_agent_loops_early)
    when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server")(early.take_early_servers)
    when_imported("verl.workers.rollout.llm_server")(early.only_server)
    when_imported("verl.utils.tracking")(records.keep_metrics)
    when_imported("verl.workers.utils.losses")(on_policy.own_log_probs)
    when_imported("verl.trainer.ppo.v1.trainer_base")(gdpo.hand_over_rewards)
    when_imported("verl.workers.engine.fsdp.transformer_impl")(adapters.keep_adapters_trainable)
    when_imported("verl.workers.engine.fsdp.transformer_impl")(adapters.no_gradients_of_frozen_tower)
    when_imported("verl.workers.engine.fsdp.transformer_impl")(prefixes.share_prompts)
    when_imported("verl.models.transformers.qwen3_5")(linear_attention.packed_sequences_apart)
    when_imported("verl.models.transformers.qwen3_5")(linear_attention.newer_linear_attention)
    when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server")(sharing.generate_group)
    when_imported("verl.trainer.ppo.v1.trainer_base")(sharing.groups_on_one_rank)
    when_imported("vllm.inputs.preprocess")(sharing.process_group_once)
    when_imported("verl.utils.seqlen_balancing")(one_part_needs_no_balance)
    when_imported("transfer_queue.utils.serial_utils")(sharing.one_copy_in_transfer)
    for modeling in vision.TOWERS:
        when_imported(modeling)(vision.share_images)
        when_imported(modeling)(vision.vision_tower_without_loops)


def check_before_start(device: ModuleType) -> None:
    """Stock veRL finds a missing model or a full disk minutes after the start, in a worker.

    `auto_set_device` is the first function that main_ppo calls with its configuration. For a run on
    `TPRUDataset` it now checks the machine first (`launch.checks`), and ends with one line.
    """
    from tpru_verl.launch.resume import warn_of_resume

    require(device, "auto_set_device")
    original = device.auto_set_device

    def auto_set_device(config: Mapping) -> None:
        original(config)
        dataset = config.get("data", {}).get("custom_cls", {})
        if dataset and str(dataset.get("path", "")).startswith("pkg://tpru_verl."):
            from tpru_verl.launch import checks  # only this process needs it

            try:
                checks.check_platform(config)
                checks.check(config)
                warn_of_resume(config)
            except (OSError, RuntimeError, ValueError) as error:
                sys.exit(f"tpru: {error}")

    replace(device, "auto_set_device", auto_set_device)


def equal_length_position_ids(tensordict_utils: ModuleType) -> None:
    """Stock veRL crashes on mRoPE position ids, [batch, 3 or 4, length], of a batch with one length.

    PyTorch builds a jagged tensor from tensors [3, L]. When all L are equal, it takes the dimension of 3 for
    the ragged one. `maybe_fix_3d_position_ids` then sets the ragged dimension to 2 without moving the values,
    and the next `unbind` raises `split_with_sizes expects split_sizes to sum exactly to ...`. The patch
    builds the tensor again from the rows.
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
            return original(data)  # [3 or 4, sum of the lengths]: ragged in length, as it should be
        rows = values.split(offsets.diff().tolist(), dim=0)
        lengths = torch.tensor([0] + [row.shape[-1] for row in rows], device=offsets.device)
        data["position_ids"] = torch.nested.nested_tensor_from_jagged(
            torch.cat(rows, dim=-1), offsets=lengths.cumsum(0), jagged_dim=2
        )
        return None

    replace(tensordict_utils, "maybe_fix_3d_position_ids", maybe_fix_3d_position_ids)


def one_part_needs_no_balance(seqlen_balancing: ModuleType) -> None:
    """Stock veRL searches for balanced parts of the batch, one a rank, where there is one rank, too.

    The search takes 0.03 processor seconds for 128 samples. Its result for one part is all of them.
    """
    require(seqlen_balancing, "get_seqlen_balanced_partitions")
    original = seqlen_balancing.get_seqlen_balanced_partitions

    def get_seqlen_balanced_partitions(seqlen_list: list[int], k_partitions: int, equal_size: bool):
        if k_partitions == 1:
            return [list(range(len(seqlen_list)))]
        return original(seqlen_list, k_partitions, equal_size)

    replace(seqlen_balancing, "get_seqlen_balanced_partitions", get_seqlen_balanced_partitions)


def log_probs_in_chunks(torch_functional: ModuleType) -> None:
    """Without flash-attn, stock veRL computes log-probabilities in a Python loop over the rows of the logits.

    Packed sequences have a row a token, so a batch becomes thousands of nodes of the graph. The patch takes
    `TOKENS_A_CHUNK` rows at a time. It computes in float32, as vLLM does; stock veRL rounds each result to
    the bfloat16 of the logits. The backward pass computes a chunk again, so that the float32 of one chunk
    alone is in memory.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    require(torch_functional, "logprobs_from_logits_v2", "logprobs_from_logits")
    original = torch_functional.logprobs_from_logits_v2

    def of_chunk(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(rows.float(), ids, reduction="none")

    def logprobs_from_logits_v2(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.dim() != 2:
            return original(logits, labels)
        chunks = zip(logits.split(TOKENS_A_CHUNK), labels.split(TOKENS_A_CHUNK), strict=True)
        found = (
            checkpoint(of_chunk, rows, ids, use_reentrant=False, preserve_rng_state=False)
            for rows, ids in chunks
        )
        return -torch.cat([*found])

    replace(torch_functional, "logprobs_from_logits_v2", logprobs_from_logits_v2)
