"""The settings of a run that matter before its start, by one name for veRL's and EasyR1's configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpru_verl import trainers

if TYPE_CHECKING:
    from tpru_verl.data.source.forms import TrainerKeys

_ACTOR, _ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
# Our name: veRL's key, EasyR1's key ("" where it has none). docs/recipe-mapping.md has all keys of a recipe.
KEYS = {
    "model": ("actor_rollout_ref.model.path", "worker.actor.model.model_path"),
    "trust_remote_code": (
        "actor_rollout_ref.model.trust_remote_code",
        "worker.actor.model.trust_remote_code",
    ),
    "train_files": ("data.train_files", "data.train_files"),
    "val_files": ("data.val_files", "data.val_files"),
    "problem_key": ("data.problem_key", "data.prompt_key"),
    "answer_key": ("data.answer_key", "data.answer_key"),
    "on_invalid": ("data.on_invalid", ""),
    "conversation_key": ("data.prompt_key", ""),
    "image_key": ("data.image_key", "data.image_key"),
    "template": ("data.prompt_template", "data.format_prompt"),
    "prompt_length": ("data.max_prompt_length", "data.max_prompt_length"),
    "response_length": ("data.max_response_length", "data.max_response_length"),
    "filter": ("data.filter_overlong_prompts", "data.filter_overlong_prompts"),
    "min_pixels": ("data.min_pixels", "data.min_pixels"),
    "max_pixels": ("data.max_pixels", "data.max_pixels"),
    "batch": ("data.train_batch_size", "data.rollout_batch_size"),
    "mini_batch": (f"{_ACTOR}.ppo_mini_batch_size", "worker.actor.global_batch_size"),
    "micro_batch": (
        f"{_ACTOR}.ppo_micro_batch_size_per_gpu",
        "worker.actor.micro_batch_size_per_device_for_update",
    ),
    "sequence_parallel": (f"{_ACTOR}.ulysses_sequence_parallel_size", "worker.actor.ulysses_size"),
    "dynamic_batch": (f"{_ACTOR}.use_dynamic_bsz", ""),
    "micro_tokens": (f"{_ACTOR}.ppo_max_token_len_per_gpu", ""),
    "micro_log_prob": (
        f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu",
        "worker.actor.micro_batch_size_per_device_for_experience",
    ),
    "remove_padding": ("actor_rollout_ref.model.use_remove_padding", "worker.actor.padding_free"),
    "gradient_checkpointing": (
        "actor_rollout_ref.model.enable_gradient_checkpointing",
        "worker.actor.model.enable_gradient_checkpointing",
    ),
    "fused_kernels": ("actor_rollout_ref.model.use_fused_kernels", ""),
    "attention": ("actor_rollout_ref.model.override_config.attn_implementation", ""),
    "lora_rank": ("actor_rollout_ref.model.lora_rank", "worker.actor.model.lora.rank"),
    "model_dtype": (f"{_ACTOR}.fsdp_config.model_dtype", "worker.actor.fsdp.torch_dtype"),
    "fsdp_size": (f"{_ACTOR}.fsdp_config.fsdp_size", "worker.actor.fsdp.fsdp_size"),
    "offload_policy": (f"{_ACTOR}.fsdp_config.offload_policy", "worker.actor.fsdp.enable_cpu_offload"),
    "optimizer_options": (f"{_ACTOR}.optim.override_optimizer_config", ""),
    "params_offload": (f"{_ACTOR}.fsdp_config.param_offload", "worker.actor.offload.offload_params"),
    "optimizer_offload": (
        f"{_ACTOR}.fsdp_config.optimizer_offload",
        "worker.actor.offload.offload_optimizer",
    ),
    "kl_loss": (f"{_ACTOR}.use_kl_loss", "algorithm.use_kl_loss"),
    "n": (f"{_ROLLOUT}.n", "worker.rollout.n"),
    "tensor_parallel": (f"{_ROLLOUT}.tensor_model_parallel_size", "worker.rollout.tensor_parallel_size"),
    "gpu_memory": (f"{_ROLLOUT}.gpu_memory_utilization", "worker.rollout.gpu_memory_utilization"),
    "max_model_len": (f"{_ROLLOUT}.max_model_len", "worker.rollout.max_model_len"),
    "chunked_prefill": (f"{_ROLLOUT}.enable_chunked_prefill", "worker.rollout.enable_chunked_prefill"),
    "batched_tokens": (f"{_ROLLOUT}.max_num_batched_tokens", "worker.rollout.max_num_batched_tokens"),
    "limit_images": (f"{_ROLLOUT}.limit_images", "worker.rollout.limit_images"),
    "nodes": ("trainer.nnodes", "trainer.nnodes"),
    "gpus": ("trainer.n_gpus_per_node", "trainer.n_gpus_per_node"),
    "device": ("trainer.device", ""),
    "checkpoints": ("trainer.default_local_dir", "trainer.save_checkpoint_path"),
    "rollouts": ("trainer.rollout_data_dir", ""),
    "validation": ("trainer.validation_data_dir", ""),
    "resume": ("trainer.resume_mode", "trainer.find_last_checkpoint"),
    "load_checkpoint": ("trainer.resume_from_path", "trainer.load_checkpoint_path"),
    "total_steps": ("trainer.total_training_steps", "trainer.max_steps"),
    "epochs": ("trainer.total_epochs", "trainer.total_epochs"),
    "most_rows": ("data.train_max_samples", ""),
    "logger": ("trainer.logger", "trainer.logger"),
    "save_freq": ("trainer.save_freq", "trainer.save_freq"),
    "save_contents": (f"{_ACTOR}.checkpoint.save_contents", ""),
    "save_model_only": ("", "trainer.save_model_only"),
    "save_lora_only": (f"{_ACTOR}.checkpoint.save_lora_only", ""),
    "keep": ("trainer.max_actor_ckpt_to_keep", "trainer.save_limit"),
    "reward_file": ("reward.custom_reward_function.path", "worker.reward.reward_function"),
    "reward_name": ("reward.custom_reward_function.name", "worker.reward.reward_function_name"),
    "reward_kwargs": (
        "reward.custom_reward_function.reward_kwargs",
        "worker.reward.reward_function_kwargs",
    ),
    "reward_type": ("", "worker.reward.reward_type"),
}


def value_at(config: Mapping[str, object], key: str) -> Any:
    """The value under a trainer's dotted key, None where there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


class Settings:
    """A complete configuration of a trainer, read by our names. `config`: plain dictionaries, resolved."""

    def __init__(self, trainer: str, config: Mapping[str, object]) -> None:
        self.trainer, self.config = trainer, config

    def key(self, name: str) -> str:
        """The trainer's own key, for messages."""
        return KEYS[name][self.trainer != trainers.VERL]

    def __getitem__(self, name: str) -> object:
        """The value, None where the trainer has no such key."""
        return value_at(self.config, self.key(name))

    def text(self, name: str) -> str:
        value = self[name]
        return "" if value is None else str(value)

    def integer(self, name: str) -> int:
        """The value, 0 where there is none."""
        value = self[name]
        return int(value) if isinstance(value, (int, float)) else 0

    def said(self, name: str) -> str:
        """`key=value`, as on the command line."""
        return f"{self.key(name)}={self[name]}"

    @property
    def world(self) -> int:
        """GPUs of all nodes."""
        return max(1, self.integer("nodes")) * max(1, self.integer("gpus"))

    @property
    def data_parallel(self) -> int:
        """Groups of GPUs that get samples of their own; the GPUs of a group share each sequence."""
        return max(1, self.world // max(1, self.integer("sequence_parallel")))

    @property
    def shards(self) -> int:
        """GPUs that share one copy of the actor's states; the others have copies of their own (HSDP)."""
        size = self.integer("fsdp_size")
        return size if 0 < size < self.world else self.world

    def files(self, name: str) -> list[str]:
        """Entries of `train_files` or `val_files`."""
        value = self[name]
        return [str(entry) for entry in value] if isinstance(value, (list, tuple)) else [str(value or "")]

    @property
    def row_keys(self) -> TrainerKeys:
        """Columns of a data file that the trainer reads; only veRL's data set reads conversations."""
        from tpru_verl.data.source.forms import TrainerKeys

        named = {"problem": "problem_key", "answer": "answer_key", "images": "image_key"}
        keys = TrainerKeys(**{role: self.text(name) or role for role, name in named.items()})
        prompt = self.text("conversation_key") or "prompt"
        return replace(keys, prompt=prompt if self.trainer == trainers.VERL else None)

    @property
    def mm_processor_kwargs(self) -> Mapping[str, object]:
        """What veRL hands to the processor beside text and images; EasyR1 hands nothing."""
        return self._told("data.mm_processor_kwargs")

    @property
    def chat_template_kwargs(self) -> Mapping[str, object]:
        """What veRL hands to the chat template beside the messages; EasyR1 hands nothing."""
        return self._told("data.apply_chat_template_kwargs")

    def _told(self, key: str) -> Mapping[str, object]:
        told = value_at(self.config, key)
        return dict(told) if isinstance(told, Mapping) else {}

    @property
    def template(self) -> str:
        """Of the prompt, as `tpru_verl.prompts.render` takes it; EasyR1 without one shows the problem."""
        value = self.text("template")
        if not value:
            return "tpru" if self.trainer == trainers.VERL else "bare"
        own = Path(value)
        return own.stem if own.parent.name == "prompts" and own.parent.parent.name == "tpru_verl" else value
