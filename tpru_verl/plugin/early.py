"""Patches that start processes before veRL needs them, so that they import meanwhile (docs/patches.md).

veRL starts its actors one after the other: the trainer's workers, vLLM's servers, load balancer, agent loops.
Each imports torch, transformers, vLLM and veRL first, for ten seconds on two CPU cores, and the others wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tpru_verl.plugin.hooks import replace, require

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from ray.actor import ActorHandle
    from typing_extensions import Self

logger = logging.getLogger("tpru_verl")

OUR_MANAGER = "tpru_verl.plugin.agent_loop.TPRUAgentLoopManager"

_servers: dict[str, tuple[dict[str, Any], ActorHandle]] = {}  # started early, by veRL's name: options, actor
_constructions: set[asyncio.Future[None]] = set()


def constructed_later(cls: type) -> Any:
    """Let the class be made without arguments, as an actor that only imports; `begin` then constructs it."""
    construct = cls.__init__

    def __init__(self: Any, *args: object, **kwargs: object) -> None:  # noqa: N807
        if args or kwargs:
            construct(self, *args, **kwargs)
        else:
            self.begun = asyncio.Event()

    async def begin(self: Any, *args: object, **kwargs: object) -> None:
        try:
            construct(self, *args, **kwargs)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.begun.set()

    cls.__init__ = __init__
    cls.begin = begin  # type: ignore[attr-defined]
    return cls


class Unconstructed:
    """Stands for Ray's actor class of `constructed_later` where veRL makes actors; drops the arguments."""

    def __init__(self, actor_class: Any) -> None:
        self._class, self._options = actor_class, {}

    def options(self, **options: Any) -> Self:
        self._options = options
        return self

    def remote(self, *_: object, **__: object) -> ActorHandle:
        return self._class.options(**self._options).remote()


class _EarlyOrNew(Unconstructed):
    """Gives the server that was started early as veRL wants it, if there is one."""

    def remote(self, *args: object, **kwargs: object) -> ActorHandle:
        import ray

        server: Any
        options, server = _servers.pop(self._options["name"], ({}, None))
        if server is not None and _alike(options, self._options):
            task = asyncio.ensure_future(_constructed(server, server.begin.remote(*args, **kwargs)))
            _constructions.add(task)
            task.add_done_callback(_constructions.discard)
            return server
        if server is not None:
            ray.kill(server)  # its name is free then
        return self._class.options(**self._options).remote(*args, **kwargs)


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    place = "scheduling_strategy"
    same = one[place].node_id == other[place].node_id
    return same and all(one[name] == other.get(name) for name in one if name != place)


async def _constructed(server: ActorHandle, begun: Any) -> None:
    """A construction that Ray cannot begin would leave the server's callers waiting: its process is ended."""
    import ray

    try:
        await begun
    except Exception as error:
        logger.error("vLLM's server was not constructed: %s", error)
        await asyncio.sleep(5)  # until its callers have the reason, where it could tell them
        ray.kill(server)


def start_servers_first(transfer_queue: ModuleType) -> None:
    """vLLM's servers of a run on one node import while veRL starts TransferQueue and the trainer's workers.

    veRL starts them when the workers have loaded the model, and so it is still then that they look for
    memory: an early server gets its arguments when veRL would have started it.
    """
    require(transfer_queue, "init")
    init = transfer_queue.init

    def init_after_servers(conf: DictConfig | None = None) -> object:
        # The first thing that the trainer does. Of the whole configuration it hands over this node.
        root: Any = conf._get_root() if conf is not None else None
        if root is not None and is_ours(root):
            or_later(_start_servers, root)
        return init(conf)

    replace(transfer_queue, "init", init_after_servers)


def start_agent_loops_early(trainer_base: ModuleType) -> None:
    """Agent loops of our manager import while the trainer's workers do. Stock veRL starts them at the end."""
    require(trainer_base.PPOTrainer, "_setup")
    setup = trainer_base.PPOTrainer._setup

    def _setup(self: Any) -> None:
        if is_ours(self.config):
            from tpru_verl.plugin.agent_loop import TPRUAgentLoopManager

            or_later(TPRUAgentLoopManager.start_early, self.config)
        setup(self)

    trainer_base.PPOTrainer._setup = _setup


def or_later(start: Callable[[DictConfig], None], config: DictConfig) -> None:
    """An early start saves time alone: where it fails, veRL starts the process later, as it always does."""
    try:
        start(config)
    except Exception as error:
        logger.warning("tpru plugin: no early start (%s: %s)", type(error).__name__, error)


def is_ours(config: DictConfig) -> bool:
    from omegaconf import OmegaConf

    rollout = "actor_rollout_ref.rollout"
    ours = {
        f"{rollout}.agent.agent_loop_manager_class": OUR_MANAGER,
        f"{rollout}.name": "vllm",
        "trainer.v1.trainer_mode": "sync",
    }
    parted = OmegaConf.select(config, f"{rollout}.disaggregation.enabled")  # prefill and decoding
    return not parted and all(OmegaConf.select(config, key) == value for key, value in ours.items())


def _start_servers(config: DictConfig) -> None:
    """Named and placed as `vLLMReplica.launch_servers` does it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
    from verl.plugin.platform import get_platform
    from verl.workers.rollout.replica import CONTROL_METHOD_CONCURRENCY
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    rollout, trainer = config.actor_rollout_ref.rollout, config.trainer
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) > 1 or not hasattr(vLLMHttpServer, "begin"):
        return
    platform = get_platform()
    env_vars = {**dict.fromkeys(platform.ray_noset_envvars(), "1"), **platform.rollout_env_vars()}
    sizes = ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size")
    ranks = trainer.nnodes * trainer.n_gpus_per_node
    for replica in range(ranks // prod(rollout[size] for size in sizes)):
        options = {
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=nodes[0], soft=False),
            "runtime_env": {"env_vars": env_vars},
            "name": f"vllm_server_{replica}_0",
            "max_concurrency": max(1000, rollout.max_num_seqs + CONTROL_METHOD_CONCURRENCY),
        }
        actor_class: Any = ray.remote(vLLMHttpServer)
        _servers[options["name"]] = options, actor_class.options(**options).remote()


def take_early_servers(vllm_async_server: ModuleType) -> None:
    """A replica takes its server of `start_servers_first`, where there is one."""
    server, replica = vllm_async_server.vLLMHttpServer, vllm_async_server.vLLMReplica
    require(server, "get_master_address", "launch_server")
    require(replica, "launch_servers")
    constructed_later(server)
    address, launch, init = server.get_master_address, server.launch_server, replica.__init__

    # veRL's first calls of a server. Ray may hand them over before `begin`, whose arguments take longer.
    async def constructed(self: Any) -> None:
        if hasattr(self, "begun"):
            await self.begun.wait()
        if hasattr(self, "failure"):
            raise self.failure

    async def get_master_address(self: Any) -> object:
        await constructed(self)
        return address(self)

    async def launch_server(self: Any, *args: object, **kwargs: object) -> object:
        await constructed(self)
        return await launch(self, *args, **kwargs)

    def __init__(self: Any, *args: object, **kwargs: object) -> None:  # noqa: N807
        init(self, *args, **kwargs)
        self.server_class = _EarlyOrNew(self.server_class)

    server.get_master_address, server.launch_server = get_master_address, launch_server
    replica.__init__ = __init__


def only_server(llm_server: ModuleType) -> None:
    """Stock veRL starts a process that chooses the server of each prompt, where there is one server, too.

    The process imports all that the server does, and each prompt calls it twice. With the patch the client
    of an only server goes there: with our agent loop and veRL's trainer in turns (`sync`), which adds no
    servers. Managers of other trainers, such as the fully asynchronous one, are subclasses and add some.
    """
    manager, client = llm_server.LLMServerManager, llm_server.LLMServerClient
    require(manager, "_init_global_load_balancer", "get_client")
    require(client, "_acquire_server", "_release_server")
    start, make = manager._init_global_load_balancer, manager.get_client
    acquire, release = client._acquire_server, client._release_server

    async def _init_global_load_balancer(self: Any) -> None:
        own = self._load_balancer_cls or self.rollout_config.get("router_config_path")
        only = type(self) is manager and len(self.server_handles) == 1 and is_ours(self.config)
        if only and not own:
            self.global_load_balancer = None
        else:
            await start(self)

    def get_client(self: Any, *args: object, **kwargs: object) -> Any:
        made = make(self, *args, **kwargs)
        if self.global_load_balancer is None:
            made.only_server = self.server_addresses[0], self.server_handles[0]
        return made

    async def _acquire_server(self: Any, *args: object, **kwargs: object) -> tuple[str, ActorHandle]:
        return getattr(self, "only_server", None) or await acquire(self, *args, **kwargs)

    def _release_server(self: Any, *args: object, **kwargs: object) -> None:
        if not hasattr(self, "only_server"):
            release(self, *args, **kwargs)

    manager._init_global_load_balancer, manager.get_client = _init_global_load_balancer, get_client
    client._acquire_server, client._release_server = _acquire_server, _release_server
