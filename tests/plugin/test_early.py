"""Processes that start before veRL needs them, against veRL's own classes."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

pytest.importorskip("verl")
pytest.importorskip("vllm")
import ray
from omegaconf import OmegaConf
from support.rollouts import Remote
from verl.workers.rollout.llm_server import LLMServerClient, LLMServerManager
from verl.workers.rollout.replica import RolloutMode
from verl.workers.rollout.vllm_rollout import vllm_async_server

from tpru_verl import recipes
from tpru_verl.plugin import early
from tpru_verl.plugin.agent_loop import TPRUAgentLoopManager


class Recorder:
    """Stands for `ray.remote(cls)`: keeps the options and arguments of each actor."""

    made: ClassVar[list[tuple[dict, tuple, dict]]] = []

    def __init__(self, cls: type) -> None:
        self._options: dict[str, Any] = {}

    def options(self, **options: Any) -> "Recorder":
        self._options = options
        return self

    def remote(self, *args: object, **kwargs: object) -> SimpleNamespace:
        self.made.append((self._options, args, kwargs))

        async def begin(*args: object, **kwargs: object) -> None:
            self.made.append(({"name": self._options["name"], "begun": True}, args, kwargs))

        return SimpleNamespace(begin=Remote(begin), name=self._options.get("name"))


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict, tuple, dict]]:
    Recorder.made = []
    monkeypatch.setattr(ray, "remote", Recorder)
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"NodeID": "a" * 56, "Alive": True, "Resources": {"CPU": 2.0}}]
    )
    monkeypatch.setattr(early, "_servers", {})
    monkeypatch.setattr("tpru_verl.plugin.waiting._watched", [])
    return Recorder.made


@pytest.fixture
def config(tmp_path: Path, checkpoint: Path) -> Any:
    files = [f"data.{name}_files={tmp_path / 'rows.parquet'}" for name in ("train", "val")]
    return recipes.compose("tpru_tiny_cpu", [*files, f"actor_rollout_ref.model.path={checkpoint}"])


def replica(config: Any, rank: int = 0) -> Any:
    from verl.utils.config import omega_conf_to_dataclass

    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    return vllm_async_server.vLLMReplica(rank, rollout, config.actor_rollout_ref.model, gpus_per_node=1)


async def _where(_: object) -> tuple[str, str]:
    return "a" * 56, "0"


def launch(one: Any) -> None:
    """As far as the first call of the server."""
    one.workers = [SimpleNamespace(__ray_call__=Remote(_where))]
    one.rollout_mode = RolloutMode.HYBRID
    one.nnodes, one.gpus_per_replica_node = 1, 1
    with pytest.raises(AttributeError, match="get_master_address"):
        asyncio.run(one.launch_servers())


def test_an_early_server_is_made_as_verl_would_make_it(config: Any, actors: list) -> None:
    launch(replica(config))
    stock, *_ = actors
    actors.clear()
    early._start_servers(config)
    made = actors[0]
    for option in ("name", "runtime_env", "max_concurrency"):
        assert made[0][option] == stock[0][option], option
    assert made[0]["scheduling_strategy"].node_id == stock[0]["scheduling_strategy"].node_id
    assert made[1:] == ((), {})


def test_a_replica_takes_the_early_server_of_its_name_with_verls_arguments(config: Any, actors: list) -> None:
    early._start_servers(config)
    launch(replica(config, rank=1))  # another replica
    assert [options["name"] for options, *_ in actors] == ["vllm_server_0_0", "vllm_server_1_0"]
    launch(replica(config))
    assert len(actors) == 3
    options, _, arguments = actors[-1]
    assert options == {"name": "vllm_server_0_0", "begun": True}
    assert arguments["replica_rank"] == 0
    assert arguments["cuda_visible_devices"] == "0"
    assert early._servers == {}


def test_each_replica_of_one_node_has_an_early_server_and_two_nodes_have_none(
    config: Any, actors: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.trainer.n_gpus_per_node = 4
    config.actor_rollout_ref.rollout.tensor_model_parallel_size = 2
    early._start_servers(config)
    assert list(early._servers) == ["vllm_server_0_0", "vllm_server_1_0"]
    early._servers.clear()
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": name, "Alive": True} for name in "ab"])
    early._start_servers(config)
    assert early._servers == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.rollout.agent.agent_loop_manager_class", None),
        ("actor_rollout_ref.rollout.name", "sglang"),
        ("trainer.v1.trainer_mode", "separate_async"),
        ("actor_rollout_ref.rollout.disaggregation.enabled", True),
    ],
)
def test_other_runs_start_as_stock_verl_starts_them(config: Any, key: str, value: object) -> None:
    assert early.is_ours(config)
    OmegaConf.update(config, key, value)
    assert not early.is_ours(config)
    assert not early.is_ours(OmegaConf.create({"trainer": {}}))


def test_the_first_call_of_a_server_waits_for_its_construction_and_says_why_it_failed() -> None:
    server_class: Any = vllm_async_server.vLLMHttpServer
    server = server_class()

    async def begin_late() -> BaseException:
        address = asyncio.ensure_future(server.get_master_address())
        await asyncio.sleep(0)
        assert not address.done()
        with pytest.raises(ValueError, match="disaggregation_role must be"):
            await server.begin(*[None] * 9, disaggregation_role="other")
        (found,) = await asyncio.gather(address, return_exceptions=True)
        return found

    assert "disaggregation_role must be" in str(asyncio.run(begin_late()))


def test_an_early_server_with_other_options_is_ended(
    config: Any, actors: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(ray, "kill", ended.append)
    early._start_servers(config)
    one = replica(config)
    monkeypatch.setattr(type(one), "max_concurrency", 5)
    launch(one)
    assert [actor.name for actor in ended] == ["vllm_server_0_0"]
    assert actors[-1][0]["max_concurrency"] == 5
    assert actors[-1][2]["replica_rank"] == 0


def test_without_the_other_half_of_the_patch_servers_start_as_ever(
    config: Any, actors: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(vllm_async_server.vLLMHttpServer, "begin")
    early._start_servers(config)
    assert (early._servers, actors) == ({}, [])


def test_an_early_start_that_fails_leaves_the_run_alone(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("no such node")

    logger = early.logger
    logger.propagate = True
    early.or_later(fail, OmegaConf.create())
    assert "no early start (RuntimeError: no such node)" in caplog.text


def test_a_server_that_cannot_be_constructed_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def begin() -> None:
        raise TypeError("arguments that do not arrive")

    async def no_sleep(_: float) -> None: ...

    ended: list[Any] = []
    monkeypatch.setattr(ray, "kill", ended.append)
    monkeypatch.setattr("asyncio.sleep", no_sleep)
    server: Any = object()
    asyncio.run(early._constructed(server, begin()))
    assert ended == [server]


def test_agent_loops_start_without_arguments_and_get_those_of_the_manager(config: Any, actors: list) -> None:
    TPRUAgentLoopManager.start_early(config)
    ((options, args, kwargs),) = actors
    assert options["name"].startswith("agent_loop_worker_0")
    assert (args, kwargs) == ((), {})
    client: Any = object()
    manager: Any = TPRUAgentLoopManager.create(config, client, None, [])
    assert actors[1:] == [({"name": options["name"], "begun": True}, (config, client, None, []), {})]
    assert [worker.name for worker in manager.agent_loop_workers] == [options["name"]]
    later: Any = TPRUAgentLoopManager.create(config, client, None, [])
    assert len(later.agent_loop_workers) == 1
    assert actors[-1][1] == (config, client, None, [])  # a worker of its own


class OfAnotherTrainer(LLMServerManager):
    """As the manager of veRL's fully asynchronous trainer, which adds servers later."""


@pytest.mark.parametrize(
    ("servers", "mode", "kind", "balanced"),
    [
        (1, "sync", LLMServerManager, False),
        (2, "sync", LLMServerManager, True),
        (1, "colocate_async", LLMServerManager, True),
        (1, "sync", OfAnotherTrainer, True),
        (0, "sync", LLMServerManager, True),
    ],
)
def test_the_client_of_an_only_server_goes_there(
    config: Any, monkeypatch: pytest.MonkeyPatch, servers: int, mode: str, kind: type, balanced: bool
) -> None:
    config.trainer.v1.trainer_mode = mode
    manager: Any = object.__new__(kind)
    manager.config, manager.rollout_config = config, config.actor_rollout_ref.rollout
    manager._load_balancer_cls = None
    manager.server_addresses = [f"host:{i}" for i in range(servers)]
    manager.server_handles = [f"server {i}" for i in range(servers)]
    released: list[str] = []
    monkeypatch.setattr("verl.workers.rollout.router.get_router_handle", lambda **_: balancer(released))
    asyncio.run(manager._init_global_load_balancer())
    client: LLMServerClient = manager.get_client()

    async def ask() -> Any:
        found = await client._acquire_server("request", prompt_ids=[1])
        client._release_server(found[0], request_id="request")
        await asyncio.sleep(0)
        return found

    assert asyncio.run(ask()) == (("of the balancer", "server 1") if balanced else ("host:0", "server 0"))
    assert released == (["of the balancer"] if balanced else [])


def balancer(released: list[str]) -> SimpleNamespace:
    async def fields() -> list[str]:
        return []

    async def acquire(**_: object) -> tuple[str, str]:
        return "of the balancer", "server 1"

    async def release(server_id: str) -> None:
        released.append(server_id)

    return SimpleNamespace(
        require_acquire_fields=Remote(fields),
        require_release_fields=Remote(fields),
        acquire_server=Remote(acquire),
        release_server=Remote(release),
    )
