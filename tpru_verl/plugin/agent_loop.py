"""An agent loop for veRL 0.9.1 that prepares the images of a prompt once for all of its samples.

Stock veRL (`trainer/ppo/v1/agent_loop_tq.py`) prepares each sample apart. For each it resizes the images,
runs the processor to build the prompt, again for the reward worker and again for the training batch, and
sends the images to vLLM. Here the samples of a prompt share one preparation, one call to vLLM, one call to
the reward worker and one write to TransferQueue. The tensors are the same (tests/plugin/test_agent_loop.py).

A recipe chooses it with `actor_rollout_ref.rollout.agent.agent_loop_manager_class`. Stock veRL still runs
agent loops with tools or several turns, distillation, asynchronous trainers, engines other than vLLM, and
processors of a family that `tpru_verl.models` lacks. In a veRL whose agent loop differs (0.9.0) it runs all.
"""

from __future__ import annotations

import tpru_verl.plugin.required  # noqa: F401

# isort: split
import asyncio
import inspect
import logging
import random
from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast
from uuid import uuid4

import numpy as np
import ray
import torch
import transfer_queue as tq
import verl
from omegaconf import DictConfig, OmegaConf
from tensordict import NonTensorData, TensorDict
from verl.experimental.agent_loop.agent_loop import (
    AgentLoopBase,
    AgentLoopMetrics,
    AgentLoopOutput,
    DictConfigWrap,
)
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.protocol import DataProto
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from tpru_verl.models import FAMILIES
from tpru_verl.plugin import early, hooks, reproducible, sharing
from tpru_verl.plugin.processors import Executor, check_lists_of_ids, training_features
from tpru_verl.plugin.waiting import ERROR, RefusedError, ends_run, reason_of, said, watch
from tpru_verl.trainers import TESTED, VERL

if TYPE_CHECKING:
    from PIL.Image import Image
    from ray.actor import ActorHandle
    from verl.workers.rollout.llm_server import LLMServerClient
    from verl.workers.rollout.replica import TokenOutput

logger = logging.getLogger("tpru_verl")

# Added to the logits of image and video tokens: a sampled one would have no image, and end the run.
NEVER = -100.0

# Ray hides the class behind an actor class that cannot be inherited from.
_StockWorker = vars(AgentLoopWorkerTQ)["__ray_metadata__"].modified_class.__ray_actor_class__


class Prepared(NamedTuple):
    """A prompt for vLLM and its features for training."""

    ids: list[int]
    images: list[Image]
    features: dict[str, torch.Tensor]


@early.constructed_later
class TPRUAgentLoopWorker(_StockWorker):
    """Runs the n samples of a prompt as one group."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        # OmegaConf parses a value that refers to another one each time it is read.
        config = cast("DictConfig", OmegaConf.create(OmegaConf.to_container(self.config, resolve=True)))
        self._single_turn = SingleTurnAgentLoop(
            trainer_config=DictConfigWrap(config=config),
            server_manager=self.llm_client,
            tokenizer=self.tokenizer,
            processor=self.processor,
            hf_model_type=self.hf_model_type,
            dataset_cls=self.dataset_cls,
            data_config=DictConfigWrap(config.data),
        )
        self._single_turn.loop.set_default_executor(Executor())
        self._groups = self._runs_groups()
        self._tags: dict[str, dict[str, dict]] = {}  # of a partition: uid -> tag, not yet written
        self._writing: dict[str, asyncio.Task[None]] = {}
        tokens = (getattr(self.processor, name, None) for name in ("image_token_id", "video_token_id"))
        self._never_sampled = {token: NEVER for token in tokens if token is not None}
        if self._groups:
            check_lists_of_ids(self.processor)

    def _runs_groups(self) -> bool:
        kind, engine = type(self.processor).__name__, self.rollout_config.name
        # The asynchronous trainers abort requests at a weight update; veRL's client resumes each sample.
        mode = self.config.trainer.v1.trainer_mode
        known = kind in {family.processor for family in FAMILIES.values()}
        patch = sharing.generate_group.__name__  # of the server, which is another process
        if known and (engine, mode) == ("vllm", "sync") and patch not in hooks.skipped:
            return True
        found = f"found {kind}, rollout.name={engine}, trainer_mode={mode}, skipped: {sorted(hooks.skipped)}"
        expected = f"expected a processor of tpru_verl.models, vllm, sync, {patch} not skipped"
        logger.warning("tpru plugin: stock veRL prepares each sample apart: %s, %s", found, expected)
        return False

    async def _run_prompt(
        self, prompt: dict, sampling_params: dict, trajectory: dict, trace: bool = False
    ) -> None:
        single_turn = prompt.get("agent_name") == "single_turn_agent"
        uid, partition_id = prompt["uid"], "val" if trajectory["validate"] else "train"
        if not self._groups or not single_turn or self.distillation_enabled:
            if reproducible.is_on():
                await self._tell(partition_id, uid, {"status": "failure", ERROR: reproducible.ONE_SEED})
                return
            await super()._run_prompt(prompt, sampling_params, trajectory, trace)
            return
        await self._tell(partition_id, uid, {"status": "running"})
        tag = {"status": "failure"}
        try:
            prepared = await self._prepare(list(prompt["raw_prompt"]))
        except Exception as error:
            logger.exception("prompt %s cannot be prepared", uid)
            tag[ERROR] = f"{_row_of(prompt)}: the prompt cannot be prepared ({reason_of(error)})"
        else:
            try:
                await self._run_group(prompt, prepared, sampling_params, trajectory["validate"])
                tag["status"] = "finished"
            except Exception as error:
                logger.error("rollout of prompt %s failed: %s", uid, said(error))
                if reason := ends_run(error, _row_of(prompt)):
                    tag[ERROR] = reason
        await self._tell(partition_id, uid, tag)

    def _tell(self, partition_id: str, uid: str, tag: dict) -> asyncio.Task[None]:
        """Write the tag of a prompt in one call with those of others of this turn of the event loop."""
        if partition_id not in self._tags:
            self._tags[partition_id] = {}
            self._writing[partition_id] = asyncio.create_task(self._write(partition_id))
        self._tags[partition_id][uid] = tag
        return self._writing[partition_id]

    async def _write(self, partition_id: str) -> None:
        tags = self._tags.pop(partition_id)
        await tq.async_kv_batch_put(keys=list(tags), partition_id=partition_id, tags=list(tags.values()))

    async def _prepare(self, messages: list[dict]) -> Prepared:
        loop = self._single_turn
        images: list[Image] = (await loop.process_multi_modal_info(messages)).get("images") or []
        loop._assert_mm_supported(bool(images))
        features: dict[str, object] = {}
        ids = await loop.ct_build_initial_tokens(messages, images=images, mm_inputs_out=features)
        return Prepared(ids, images, training_features(features, len(images)))

    async def _run_group(
        self, prompt: dict, prepared: Prepared, sampling_params: dict, validate: bool
    ) -> None:
        config = self.rollout_config
        n = prompt.pop("__rollout_n__", config.val_kwargs.n if validate else config.n)
        if not validate and not prompt.pop("__do_sample__", True):
            sampling_params = {**sampling_params, "top_p": 1.0, "top_k": -1, "temperature": 0}

        started = asyncio.get_running_loop().time()
        priority = int(prompt.get("priority", 0))
        seeds = reproducible.seeds(config.seed, prompt, n, validate) if reproducible.is_on() else []
        request_id = str(prompt["uid"]) if seeds else uuid4().hex
        samples = await self._generate(
            n, prepared.ids, sampling_params, prepared.images, priority, request_id, seeds
        )
        seconds = asyncio.get_running_loop().time() - started
        outputs = [await self._output(prepared.ids, sample, seconds) for sample in samples]
        await self._put(prompt, outputs, prepared.features, validate)

    async def _generate(
        self,
        n: int,
        prompt_ids: list[int],
        sampling_params: dict,
        images: list[Image],
        priority: int,
        request_id: str,
        seeds: list[int],
    ) -> list[TokenOutput]:
        """Sample a prompt n times in one call to one server, which veRL's load balancer chooses."""
        client, loop = self.llm_client, self._single_turn
        server_id, server = await client._acquire_server(request_id, prompt_ids=prompt_ids)
        sampling_params = {**sampling_params, "logit_bias": self._never_sampled}
        extra: dict[str, object] = {"priority": priority} if priority else {}
        if kwargs := loop._get_mm_processor_kwargs():
            extra["mm_processor_kwargs"] = kwargs
        try:
            samples = await server.generate_group.remote(
                n,
                request_id=request_id,
                prompt_ids=prompt_ids,
                sampling_params=sampling_params,
                image_data=images or None,
                seeds=seeds,
                **extra,
            )
        except ValueError as error:
            raise RefusedError(said(error)) from error
        finally:
            client._release_server(server_id, request_id=request_id)
        for sample in samples:
            step = sample.extra_fields.get("global_steps")
            sample.extra_fields.update(min_global_steps=step, max_global_steps=step)
        return samples

    async def _output(self, prompt_ids: list[int], sample: TokenOutput, seconds: float) -> AgentLoopOutput:
        merged, mask, log_probs = await self._single_turn.ct_merge_assistant_token(
            prompt_ids,
            sample.token_ids,
            [],
            [] if sample.log_probs else None,
            assistant_logprobs=sample.log_probs or None,
        )
        split, limit = len(merged.token_ids) - len(mask), self.rollout_config.response_length
        return AgentLoopOutput(
            prompt_ids=merged.token_ids[:split],
            response_ids=merged.token_ids[split:][:limit],
            response_mask=mask[:limit],
            response_logprobs=log_probs[:limit] if log_probs else None,
            num_turns=2,
            metrics=AgentLoopMetrics(
                generate_sequences=seconds,
                num_preempted=-1 if sample.num_preempted is None else sample.num_preempted,
            ),
            extra_fields={**sample.extra_fields, "turn_scores": [], "tool_rewards": []},
        )

    async def _put(
        self,
        prompt: dict,
        outputs: list[AgentLoopOutput],
        multi_modal_inputs: dict[str, torch.Tensor],
        validate: bool,
    ) -> None:
        """Score the group and write it to TransferQueue, with the keys and tags of stock veRL.

        Its fields are those of stock veRL, but for messages that nobody reads.
        """
        positions = self._positions(outputs, multi_modal_inputs)
        multi_modal_inputs.pop("mm_token_type_ids", None)  # only positions need them
        await self._score(prompt, outputs)

        # veRL reads the messages again where the trainer asks a reward model; they hold the pictures.
        unread = {"raw_prompt"} if self.reward_loop_worker_handles is not None else set()
        # Without this TensorDict would wrap each value once for every sample.
        shared = {
            key: value if isinstance(value, torch.Tensor) else NonTensorData(value)
            for key, value in {**prompt, "multi_modal_inputs": multi_modal_inputs}.items()
            if key not in unread
        }
        batch_keys, fields, tags = [], [], []
        for session_id, (output, position_ids) in enumerate(zip(outputs, positions, strict=True)):
            field = {**output.as_dict(), **shared, "session_id": session_id}
            field["loss_mask"] = field["response_mask"]
            field["input_ids"] = torch.cat([field["prompts"], field["responses"]])
            field["position_ids"] = position_ids
            fields.append(field)
            batch_keys.append(f"{prompt['uid']}_{session_id}_0")
            prompt_len, response_len = len(output.prompt_ids), len(output.response_ids)
            tags.append(
                {
                    "status": "success",
                    "prompt_len": prompt_len,
                    "response_len": response_len,
                    "seq_len": prompt_len + response_len,
                    "global_steps": prompt["global_steps"],
                    "min_global_steps": output.extra_fields.get("min_global_steps"),
                    "max_global_steps": output.extra_fields.get("max_global_steps"),
                }
            )
        await tq.async_kv_batch_put(
            keys=batch_keys,
            fields=list_of_dict_to_tensordict(fields),
            tags=tags,
            partition_id="val" if validate else "train",
        )

    def _positions(
        self, outputs: list[AgentLoopOutput], multi_modal_inputs: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Position ids of each output: [4, length] with mRoPE (text, time, height, width), else [length].

        They are computed once, for the prompt. The prompt ends in text and a response is text, so its
        positions go on from the last one of the prompt.
        """
        ids = torch.tensor([outputs[0].prompt_ids])
        # A copy, because veRL's method removes an entry.
        prompt = self._compute_position_ids(ids, torch.ones_like(ids), dict(multi_modal_inputs)).squeeze(0)
        return [
            torch.cat([prompt, prompt[..., -1:] + torch.arange(1, len(output.response_ids) + 1)], dim=-1)
            for output in outputs
        ]

    async def _score(self, prompt: dict, outputs: list[AgentLoopOutput]) -> None:
        if self.reward_loop_worker_handles is None:
            return  # veRL scores the whole batch later
        lengths = [len(output.response_ids) for output in outputs]
        responses = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(output.response_ids) for output in outputs], batch_first=True
        )
        prompts = torch.tensor([outputs[0].prompt_ids]).expand(len(outputs), -1)
        response_mask = (torch.arange(responses.shape[1]) < torch.tensor(lengths).unsqueeze(1)).long()
        data = DataProto(
            batch=TensorDict(
                {
                    "prompts": prompts,
                    "responses": responses,
                    "input_ids": torch.cat([prompts, responses], dim=1),
                    "attention_mask": torch.cat([torch.ones_like(prompts), response_mask], dim=1),
                },
                batch_size=len(outputs),
            ),
            non_tensor_batch={
                **{key: _repeat(value, len(outputs)) for key, value in prompt.items() if key != "raw_prompt"},
                "__num_turns__": np.array([output.num_turns for output in outputs]),
                "tool_extra_fields": _objects([output.extra_fields for output in outputs]),
            },
        )
        worker = random.choice(self.reward_loop_worker_handles)
        for output, result in zip(outputs, await worker.compute_score_batch.remote(data), strict=True):
            output.reward_score = result["reward_score"]
            output.extra_fields["reward_extra_info"] = result["reward_extra_info"]


def _row_of(prompt: Mapping[str, object]) -> str:
    """The row of a prompt as `TPRUDataset` names it, with its file."""
    extra = prompt.get("extra_info")
    found = cast("Mapping[str, object]", extra) if isinstance(extra, Mapping) else {}
    place, row_id = found.get("place"), found.get("row_id")
    if not place:
        return f"row {row_id or prompt.get('index')}"
    return f"{place} (id {row_id})" if row_id else str(place)


def _objects(values: list) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _repeat(value: object, n: int) -> np.ndarray:
    # Reward managers write into `extra_info`, and pickle would keep one object for all samples.
    return _objects([copy(value) for _ in range(n)])


def _missing() -> list[str]:
    """Parameters of veRL's agent loop that `TPRUAgentLoopWorker` gives and this veRL does not take."""
    build = getattr(AgentLoopBase, "ct_build_initial_tokens", None)
    taken = {AgentLoopBase.__init__: "hf_model_type", build: "mm_inputs_out"}
    return [
        name
        for function, name in taken.items()
        if function is None or name not in inspect.signature(function).parameters
    ]


class TPRUAgentLoopManager(AgentLoopManagerTQ):
    """veRL's manager with our worker. It names the workers that the trainer watches while it waits."""

    _early: ClassVar[list[ActorHandle]] = []

    @classmethod
    def start_early(cls, config: DictConfig) -> None:
        """Start the processes of the workers; they become workers when veRL asks for them."""
        if not _missing():
            manager = cls(config, cast("LLMServerClient", None))
            manager.agent_loop_workers_class = early.Unconstructed(manager.agent_loop_workers_class)
            asyncio.run(AgentLoopManagerTQ._init_agent_loop_workers(manager))
            TPRUAgentLoopManager._early = manager.agent_loop_workers

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        if missing := _missing():
            if reproducible.is_on():
                raise RuntimeError(reproducible.ONE_SEED)
            logger.warning(
                "tpru plugin: stock veRL prepares each sample apart: veRL %s has no %s in its agent loop, "
                "which ours needs (veRL %s has it)",
                verl.__version__,
                ", ".join(missing),
                TESTED[VERL][0],
            )
        else:
            self.agent_loop_workers_class = ray.remote(TPRUAgentLoopWorker)

    async def _init_agent_loop_workers(self) -> None:
        workers, TPRUAgentLoopManager._early = self._early, []
        if workers:
            self.agent_loop_workers = workers
            given = self.config, self.llm_client, self.teacher_client, self.reward_loop_worker_handles
            await asyncio.gather(*(worker.begin.remote(*given) for worker in workers))
        else:
            await super()._init_agent_loop_workers()
        watch(self.agent_loop_workers)
        watch(list(self.reward_loop_worker_handles or []))
