"""Patches that fork the processes of a run from one that has imported already (docs/patches.md).

Each process of a run imports torch, transformers and vLLM, for ten seconds of a CPU core. In a run on one
machine a server (`fork_server`) does so once, beside veRL's command. Ray's workers and vLLM's engine are its
forks then.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import popen_spawn_posix, util
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tpru_verl.plugin import early, fork_server, hooks
from tpru_verl.plugin.hooks import replace, require, trains_on_cpu, when_imported

if TYPE_CHECKING:
    from omegaconf import DictConfig

ON_A_GPU = "TPRU_FORKS"  # 1: also where no CPU trains, which nobody has tried
SERVER = "TPRU_FORK_SERVER"  # its name, in the environment of each process of the run
PY_EXECUTABLE = "ray_kwargs.ray_init.runtime_env.py_executable"
COMMAND = "verl.trainer.main_ppo"
# What the processes of a run import, but for Ray and veRL; the patches first, as in each of them.
PATCHES = "tpru_verl.plugin.patches:register"
MODULES = (
    "tpru_verl.plugin.vllm_process:register",
    *("numpy", "pandas", "torch", "tensordict", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "peft"),
    *("datasets", "vllm.v1.engine.async_llm", "vllm.entrypoints.openai.api_server"),
)
# Variables that veRL gives all processes of a run, and that imports may read.
VERLS = {
    "TOKENIZERS_PARALLELISM": "true",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true",
    "VLLM_BATCH_INVARIANT": "0",
    "VLLM_DISABLE_COMPILE_CACHE": "1",
    "VLLM_LOGGING_LEVEL": "WARN",
}
# sklearn, which transformers imports in this process, sets them: a fork has to have them, too.
SKLEARNS = {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}

_running: dict[str, tuple[subprocess.Popen[bytes], Mapping[str, str]]] = {}  # by name; one at most
_launching = threading.Lock()


def register() -> None:
    """Start the server at the start of veRL's command, before that imports much, where a recipe is ours."""
    words = sys.orig_argv
    ours = words[1:3] == ["-m", COMMAND] and any("tpru" in word for word in words[3:])
    if ours and "RAY_ADDRESS" not in os.environ and "fork_workers" not in hooks.skipped:
        _start({**VERLS, **os.environ}, cpu=trains_on_cpu(), first=[PATCHES])


def begin_for_engine(*, cpu: bool) -> None:
    """Start the server for the engine of a vLLM in this process, which itself imports meanwhile.

    Once it runs, a second call does nothing. Call it in the main thread: the server ends with the thread that
    started it.
    """
    if os.environ.get(SERVER) in _running:
        return
    for name, value in SKLEARNS.items():
        os.environ.setdefault(name, value)
    end()
    if "fork_engine" not in hooks.skipped and (name := _start(os.environ, cpu=cpu)):
        os.environ[SERVER] = name
        when_imported("vllm.utils.system_utils")(fork_engine)


def _start(environment: Mapping[str, str], *, cpu: bool, first: Sequence[str] = ()) -> str:
    """The name of the server, or none. It imports for a while, and who asks meanwhile waits."""
    tried = cpu or environment.get(ON_A_GPU) == "1"
    if not tried or sys.platform != "linux":
        return ""
    name = f"tpru-{uuid.uuid4()}"
    modules = [*first, *MODULES, f"vllm.v1.worker.{'cpu' if cpu else 'gpu'}_worker"]
    command = [sys.executable, fork_server.__file__, "serve", name, str(os.getpid()), *modules]
    process = subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL)
    _running[name] = process, dict(environment)
    return name


def end() -> None:
    while _running:
        process, _ = _running.popitem()[1]
        process.kill()
        process.wait()


def fork_workers(constants_ppo: ModuleType) -> None:
    """Ray starts its workers by a command that asks the server for a fork."""
    require(constants_ppo, "get_ppo_ray_runtime_env")
    original = constants_ppo.get_ppo_ray_runtime_env

    def get_ppo_ray_runtime_env(config: DictConfig | None = None) -> dict[str, Any]:
        runtime_env = original(config)
        if config is None:
            end()
        else:
            early.or_later(partial(_ask_for_forks, runtime_env["env_vars"]), config)
        return runtime_env

    replace(constants_ppo, "get_ppo_ray_runtime_env", get_ppo_ray_runtime_env)


def _ask_for_forks(env_vars: dict[str, str], config: DictConfig) -> None:
    from omegaconf import OmegaConf

    ray_init = config.ray_kwargs.get("ray_init") or {}
    own = ray_init.get("runtime_env") or {}
    environment = {**os.environ, **env_vars, **(own.get("env_vars") or {})}
    if _can_fork(config, ray_init.get("address"), own) and (name := _server(environment)):
        words = [sys.executable, "-I", "-S", fork_server.__file__, name]
        # Not into veRL's own, over which it merges the configuration's None.
        OmegaConf.update(config, PY_EXECUTABLE, shlex.join(words), force_add=True)
        env_vars[SERVER] = name
    else:
        end()


def _can_fork(config: DictConfig, address: str | None, runtime_env: Mapping[str, Any]) -> bool:
    """Whether the run is ours, with a Ray of its own, and nobody else chooses the command of its workers."""
    from ray._private.services import get_ray_address_from_environment

    own_ray = address == "local" or (not address and get_ray_address_from_environment(None, None) is None)  # type: ignore[arg-type]
    set_here = {key for key, value in runtime_env.items() if value is not None}
    # Others, such as `py_executable` and `pip`, choose another Python.
    chosen = set_here - {"env_vars", "working_dir"} or config.global_profiler.get("tool")
    return early.is_ours(config) and own_ray and not chosen


def _server(environment: Mapping[str, str]) -> str:
    """The server of `register`, or a new one, where the run sets what that one has not imported with."""
    for name, (_, imported_with) in _running.items():
        if not fork_server.differing(imported_with, environment):
            return name
    end()
    return _start(environment, cpu=trains_on_cpu(), first=[PATCHES])


def fork_engine(system_utils: ModuleType) -> None:
    """vLLM's engine, and its workers, are forks where vLLM would start Python anew (`spawn`)."""
    require(system_utils, "get_mp_context")
    original = system_utils.get_mp_context

    def get_mp_context() -> Any:
        context = original()
        return ForkContext() if os.environ.get(SERVER) and context.get_start_method() == "spawn" else context

    replace(system_utils, "get_mp_context", get_mp_context)


class ForkPopen(popen_spawn_posix.Popen):
    """A process of `multiprocessing` that is a fork of the server, and a new one where that gives none."""

    _connection: socket.socket | None = None

    def _launch(self, process_obj: object) -> None:
        self._reading = threading.Lock()
        with _launching:
            self._thread = threading.get_ident()
            self._spawn, util.spawnv_passfds = util.spawnv_passfds, self._fork  # type: ignore[attr-defined]
            try:
                super()._launch(process_obj)  # type: ignore[misc]
            finally:
                util.spawnv_passfds = self._spawn  # type: ignore[attr-defined]

    def _fork(self, path: bytes, command: Sequence[bytes | str], fds: Sequence[int]) -> int:
        argv = [str(word) for word in command[command.index("-c") :]]  # after the interpreter and its flags
        # Else it is the tracker of resources, or a process of another thread.
        if "multiprocessing.spawn" in argv[1] and threading.get_ident() == self._thread:
            all_fds = sorted({0, 1, 2, *fds})
            with suppress(OSError):
                name = os.environ[SERVER]
                pid, self._connection = fork_server.ask(name, argv, os.environ, all_fds, bound=True)
                return pid
        return self._spawn(path, command, fds)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """As of a child of this process: `waitpid` knows only those."""
        if self._connection is None:
            return super().poll(flag)
        if self.returncode is None and wait([self.sentinel], 0 if flag == os.WNOHANG else None):
            with self._reading:
                if self.returncode is None:
                    self.returncode = fork_server.exit_code(self._connection)
                    self._connection.close()
        return self.returncode


class ForkProcess(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: object) -> ForkPopen:  # noqa: N802
        return ForkPopen(process_obj)  # type: ignore[arg-type]


class ForkContext(SpawnContext):
    Process = ForkProcess  # type: ignore[assignment]
