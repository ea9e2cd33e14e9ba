"""Processes of a run that are forks of one that has imported: like new ones, but for the time they take."""

import json
import operator
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("verl")
from omegaconf import OmegaConf
from verl.trainer import constants_ppo

from tpru_verl import recipes
from tpru_verl.plugin import fork_server, forks, hooks

TELL = """
import json, os, resource, signal, sys
import numpy
told = {
    "argv": sys.argv, "cwd": os.getcwd(), "name": __name__, "path": sys.path[0],
    "drawn": numpy.random.random(), "mark": os.environ.get("RAY_MARK"), "parent": os.getppid(),
    "group": os.getpgid(0), "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "oom": open("/proc/self/oom_score_adj").read(), "umask": os.umask(0),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE), "cores": list(os.sched_getaffinity(0)),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "ignored": signal.getsignal(signal.SIGHUP) == signal.SIG_IGN,
}
print(json.dumps(told), flush=True)
"""
# A process with much that its children have from it; it starts `python -c TELL` by `start`.
ASKER = """
import os, resource, signal, subprocess, sys
from tpru_verl.plugin import fork_server

os.setpgid(0, 0)
os.setpriority(os.PRIO_PROCESS, 0, 5)
open("/proc/self/oom_score_adj", "w").write("7")
os.umask(0o077)
resource.setrlimit(resource.RLIMIT_NOFILE, (777, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
start, name, code = sys.argv[1:]
if start == "fork":
    _, connection = fork_server.ask(name, ["-c", code, "a", "b c"], os.environ, (0, 1, 2))
    assert fork_server.exit_code(connection) == 0
else:
    subprocess.run([sys.executable, "-c", code, "a", "b c"], check=True)
"""


OF_OTHER_TESTS = ("PYTEST_CURRENT_TEST", "LD_PRELOAD")  # what changes all the time, what vLLM sets


def here(**variables: str) -> dict[str, str]:
    """The environment that the tests here begin with."""
    return {name: value for name, value in os.environ.items() if name not in OF_OTHER_TESTS} | variables


@contextmanager
def serving(*modules: str, **variables: str) -> Iterator[str]:
    name = f"tpru-test-{uuid.uuid4()}"
    command = [sys.executable, fork_server.__file__, "serve", name, str(os.getpid()), *modules]
    server = subprocess.Popen(command, env=here(**variables))
    try:
        wait_until(lambda: is_served(name))
        yield name
    finally:
        server.kill()
        server.wait()


def is_served(name: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(fork_server._address(name)) == 0


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving("numpy") as name:
        yield name


def answer(name: str, code: str, *arguments: str, **variables: str) -> tuple[list[str], int]:
    """What `python -c CODE ARGUMENT...` writes as a fork, in lines, and its exit code."""
    read, write = os.pipe()
    own = os.dup(1)
    os.dup2(write, 1)
    try:
        _, connection = fork_server.ask(name, ["-c", code, *arguments], here(**variables), (0, 1, 2))
    finally:
        os.dup2(own, 1)
        for fd in (own, write):
            os.close(fd)
    with connection, os.fdopen(read) as out:
        return out.read().splitlines(), fork_server.exit_code(connection)


class TestFork:
    def test_is_what_a_new_process_is(self, server: str, tmp_path: Path) -> None:
        told = {}
        for start in ("fork", "new"):
            command = [sys.executable, "-c", ASKER, start, server, TELL]
            done = subprocess.run(
                command, cwd=tmp_path, env=here(RAY_MARK="7"), capture_output=True, text=True, check=True
            )
            told[start] = json.loads(done.stdout)
            told[start]["group"] = told[start]["group"] == told[start].pop("parent") or "the asker's"
        # The parent of a fork is the server; its group is the asker's all the same.
        told["new"]["group"] = "the asker's"
        assert told["fork"].pop("drawn") != told["new"].pop("drawn")
        assert told["fork"] == told["new"]
        assert (told["fork"]["nice"], told["fork"]["files"][0], told["fork"]["ignored"]) == (5, 777, True)

    def test_can_take_a_title(self, server: str) -> None:
        code = (
            "import setproctitle; setproctitle.setproctitle('VLLM::X'); "
            "print(open('/proc/self/cmdline').read())"
        )
        (line,), _ = answer(server, code, SPT_NOENV="1")  # Ray sets it
        assert line.strip("\0") == "VLLM::X"

    def test_draws_otherwise_than_another(self, server: str) -> None:
        one, other = (json.loads(answer(server, TELL)[0][0])["drawn"] for _ in range(2))
        assert one != other

    @pytest.mark.parametrize(
        ("code", "expected"),
        [("raise SystemExit(3)", 3), ("raise KeyError", 1), ("import os; os.kill(os.getpid(), 9)", -9)],
    )
    def test_has_the_exit_code(self, server: str, code: str, expected: int) -> None:
        assert answer(server, code) == ([], expected)

    def test_has_its_files_under_their_numbers(self, server: str) -> None:
        pipes = [os.pipe() for _ in range(3)]
        numbers = [pair[1] for pair in pipes]
        code = f"import os\nfor fd in {numbers[::-1]}: os.write(fd, str(fd).encode())"
        _, connection = fork_server.ask(server, ["-c", code], here(), [0, 1, 2, *numbers])
        assert fork_server.exit_code(connection) == 0
        assert [os.read(pair[0], 9).decode() for pair in pipes] == [str(number) for number in numbers]

    def test_has_imported_and_a_process_with_other_variables_is_new(self, server: str) -> None:
        code = "import sys; print('numpy' in sys.modules)"
        assert answer(server, code)[0] == ["True"]
        with pytest.raises(ConnectionError):
            answer(server, code, TOKENIZERS_PARALLELISM="maybe")
        with pytest.raises(ConnectionRefusedError):
            answer("tpru-none", code)

    def test_is_not_made_for_who_no_longer_waits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
    ) -> None:
        gate = tmp_path / "gate"
        (tmp_path / "slow.py").write_text(
            f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.05)"
        )
        monkeypatch.setattr(fork_server, "WAITS", 0.2)
        with serving("slow", PYTHONPATH=str(tmp_path)) as name:
            with pytest.raises(TimeoutError):
                answer(name, "print('made')", PYTHONPATH=str(tmp_path))
            monkeypatch.undo()
            gate.touch()
            assert answer(name, "print('later')", PYTHONPATH=str(tmp_path)) == (["later"], 0)
        out, err = capfd.readouterr()
        assert "made" not in out
        assert "it did not wait for the imports" in err

    def test_keeps_what_imports_have_set(self, tmp_path: Path) -> None:
        (tmp_path / "sets_one.py").write_text("import os; os.environ['SET_BY_IMPORT'] = '1'")
        with serving("sets_one", PYTHONPATH=str(tmp_path)) as name:
            code = "import os; print(os.environ['SET_BY_IMPORT'])"
            same = {"PYTHONPATH": str(tmp_path)}
            assert answer(name, code, **same) == (["1"], 0)
            assert answer(name, code, **same, SET_BY_IMPORT="1") == (["1"], 0)
            with pytest.raises(ConnectionError):
                answer(name, code, **same, SET_BY_IMPORT="2")

    def test_imports_what_wants_ray_as_far_as_it_goes(self, tmp_path: Path) -> None:
        (tmp_path / "ray.py").write_text("")
        (tmp_path / "half.py").write_text("")
        (tmp_path / "wants.py").write_text("import half\ntry:\n import ray\nexcept ImportError:\n ray = None")
        code = (
            "import sys; print(*({'half', 'ray', 'wants'} & {*sys.modules})); import wants; print(wants.ray)"
        )
        with serving("wants", PYTHONPATH=str(tmp_path)) as name:
            lines, _ = answer(name, code, PYTHONPATH=str(tmp_path))
        assert lines[0] == "half"
        assert lines[1].startswith("<module 'ray'")

    def test_the_command_forks_where_it_can(self, server: str, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(f"import sys; print('numpy' in sys.modules); {TELL}")

        def lines(name: str, **variables: str) -> list[str]:
            command = [sys.executable, "-I", "-S", fork_server.__file__, name, str(script), "a"]
            done = subprocess.run(command, env=here(**variables), capture_output=True, text=True, check=True)
            return done.stdout.splitlines()

        # A shell, by which Ray starts its workers, sets some of its own.
        of_a_shell = {"PWD": "/elsewhere", "SHLVL": "9", "_": "x"}
        for given, imported in ((of_a_shell, "True"), ({"VLLM_LOGGING_LEVEL": "odd"}, "False")):
            found, told = lines(server, **given)
            assert found == imported
            assert json.loads(told)["argv"] == [str(script), "a"]
            assert json.loads(told)["path"] == str(tmp_path)
        assert lines("tpru-none")[0] == "False"


def test_a_server_ends_with_its_starter_and_its_forks_do_not(tmp_path: Path) -> None:
    name = f"tpru-test-{uuid.uuid4()}"
    code = f"""
import subprocess, sys, time
import os
subprocess.Popen([sys.executable, {fork_server.__file__!r}, "serve", {name!r}, str(os.getpid())])
time.sleep(60)
"""
    starter = subprocess.Popen([sys.executable, "-c", code], env=here())
    wait_until(lambda: is_served(name))
    pid, connection = fork_server.ask(name, ["-c", "import time; time.sleep(60)"], here(), (0, 1, 2))
    starter.kill()
    starter.wait()
    assert fork_server.exit_code(connection) == 255
    wait_until(lambda: not is_served(name))
    os.kill(pid, signal.SIGKILL)


def test_nothing_is_forked_of_a_process_that_has_opened_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "opens.py").write_text("import os; os.open('/dev/zero', os.O_RDONLY)")
    code = (
        "from tpru_verl.plugin import fork_server; fork_server.DEVICES = ('/dev/zero',); import os; "
        f"fork_server.serve('tpru-test-{uuid.uuid4()}', os.getppid(), ['opens'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=here(PYTHONPATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "no forks, as an import has opened /dev/zero" in done.stderr


def test_a_server_whose_starter_has_ended_ends() -> None:
    command = [sys.executable, fork_server.__file__, "serve", f"tpru-test-{uuid.uuid4()}", "1"]
    done = subprocess.run(command, env=here(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the starter of the fork server has ended" in done.stderr


def test_who_reads_the_address_does_not_know_the_name(
    server: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    assert server not in Path("/proc/net/unix").read_text()
    address = fork_server._address(server)
    monkeypatch.setattr(fork_server, "_address", lambda _: address)
    with pytest.raises(ConnectionError):
        answer("guessed", "print('made')")


def test_others_of_the_machine_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        fork_server._check_user(one)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(PermissionError, match="at the other end"):
            fork_server._check_user(one)


class TestProcess:
    """Of Python's `multiprocessing`, as vLLM starts its engine."""

    def test_ends_and_says_how(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "environ", here(**{forks.SERVER: server}))
        context = forks.ForkContext()
        queue = context.Queue()
        process = context.Process(target=queue.put, args=(["x"],))
        process.start()
        assert process._popen._connection is not None  # type: ignore[attr-defined]
        assert queue.get(timeout=60) == ["x"]
        process.join(60)
        assert process.exitcode == 0
        failing = context.Process(target=os._exit, args=(5,))
        failing.start()
        failing.join()
        assert (failing.exitcode, failing.is_alive()) == (5, False)

    def test_is_alive_until_it_is_killed(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "environ", here(**{forks.SERVER: server}))
        process = forks.ForkContext().Process(target=time.sleep, args=(60,))
        process.start()
        process.join(0.2)
        assert process.is_alive()
        assert process.exitcode is None
        process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL

    def test_ends_with_its_asker(self, server: str) -> None:
        code = f"""
import os, time
from tpru_verl.plugin import forks
os.environ[{forks.SERVER!r}] = {server!r}
process = forks.ForkContext().Process(target=time.sleep, args=(60,))
process.start()
assert process._popen._connection is not None
print(process.pid, flush=True)
time.sleep(60)
"""
        asker = subprocess.Popen([sys.executable, "-c", code], env=here(), stdout=subprocess.PIPE, text=True)
        assert asker.stdout is not None
        pid = int(asker.stdout.readline())
        os.kill(pid, 0)
        asker.kill()
        asker.wait()
        wait_until(lambda: not Path(f"/proc/{pid}").exists())

    def test_lives_on_without_the_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving("numpy") as name:
            monkeypatch.setattr(os, "environ", here(**{forks.SERVER: name}))
            process = forks.ForkContext().Process(target=time.sleep, args=(60,))
            process.start()
        assert process.is_alive()
        process.kill()
        process.join(60)
        assert process.exitcode == 255

    def test_tells_all_threads_one_exit_code(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "environ", here(**{forks.SERVER: server}))
        for _ in range(5):
            process = forks.ForkContext().Process(target=os._exit, args=(3,))
            process.start()
            with ThreadPoolExecutor(4) as pool:
                codes = [*pool.map(lambda _, p=process._popen: p.poll(0), range(4))]  # type: ignore[attr-defined]
            assert codes == [3] * 4

    @pytest.mark.parametrize("without", ["server", "pidfd_open"])
    def test_is_a_new_one_where_none_can_be_forked(
        self, server: str, monkeypatch: pytest.MonkeyPatch, without: str
    ) -> None:
        monkeypatch.setattr(os, "environ", here(**{forks.SERVER: "none" if without == "server" else server}))
        monkeypatch.delattr(os, without, raising=False)
        process = forks.ForkContext().Process(target=operator.truediv, args=(1, 0))
        process.start()
        assert process._popen._connection is None  # type: ignore[attr-defined]
        process.join(60)
        assert process.exitcode == 1


@pytest.fixture
def config() -> Any:
    return recipes.compose("tpru_tiny_cpu", ["data.train_files=a.parquet", "data.val_files=b.parquet"])


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The environments of servers that were started; none is."""
    found: list[dict] = []

    def popen(command: list[str], *, env: dict, **_: object) -> Any:
        found.append(env)
        return operator.methodcaller  # has neither `kill` nor `wait`

    monkeypatch.setattr(forks.subprocess, "Popen", popen)
    monkeypatch.setattr(forks, "_running", {})
    monkeypatch.setattr(forks, "end", forks._running.clear)
    return found


class TestRun:
    def test_workers_ask_a_server_that_began_with_what_verl_sets(
        self, config: Any, started: list[dict], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = [sys.executable, "-m", forks.COMMAND, "--config-name", "tpru_tiny_cpu"]
        monkeypatch.setattr(sys, "orig_argv", command)
        forks.register()
        found = constants_ppo.get_ppo_ray_runtime_env(config)
        assert len(started) == 1
        (name,) = forks._running
        assert found["env_vars"][forks.SERVER] == name
        words = OmegaConf.select(config, forks.PY_EXECUTABLE).split()
        assert words == [sys.executable, "-I", "-S", fork_server.__file__, name]

    def test_a_variable_of_the_run_needs_another_server(
        self, config: Any, started: list[dict], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forks._start({**forks.VERLS, **os.environ}, cpu=True)
        for i, name in enumerate(("HF_X", "TPRU_SKIP_PATCHES")):
            key = "ray_kwargs.ray_init.runtime_env"
            OmegaConf.update(config, key, {"env_vars": {name: "share_images"}}, merge=False, force_add=True)
            constants_ppo.get_ppo_ray_runtime_env(config)
            assert len(started) == 2 + i
            assert started[-1][name] == "share_images"
            OmegaConf.update(config, forks.PY_EXECUTABLE, None)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("ray_kwargs.ray_init.address", "auto"),
            ("ray_kwargs.ray_init.address", "10.0.0.1:6379"),
            ("ray_kwargs.ray_init.runtime_env.py_executable", "uv run"),
            ("ray_kwargs.ray_init.runtime_env.pip", ["x"]),
            ("global_profiler.tool", "nsys"),
            ("actor_rollout_ref.rollout.name", "sglang"),
        ],
    )
    def test_other_runs_start_as_stock_verl_starts_them(
        self, config: Any, started: list[dict], key: str, value: str
    ) -> None:
        OmegaConf.update(config, key, value, force_add=True)
        forks._start({**os.environ}, cpu=True)
        found = constants_ppo.get_ppo_ray_runtime_env(config)
        assert not forks._running
        assert forks.SERVER not in found["env_vars"]

    def test_a_cluster_that_runs_on_the_machine_is_not_its_own(
        self, config: Any, started: list[dict], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config.ray_kwargs.ray_init.address = None
        monkeypatch.setattr("ray._private.services.get_ray_address_from_environment", lambda *_: None)
        assert forks.SERVER in constants_ppo.get_ppo_ray_runtime_env(config)["env_vars"]
        monkeypatch.setattr("ray._private.services.get_ray_address_from_environment", lambda *_: "1.2.3.4:5")
        OmegaConf.update(config, forks.PY_EXECUTABLE, None)
        assert forks.SERVER not in constants_ppo.get_ppo_ray_runtime_env(config)["env_vars"]

    def test_begins_for_our_recipes_in_verls_command_alone(
        self, started: list[dict], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for words in (["-m", forks.COMMAND], ["-m", "pytest", "tpru"], ["-m", forks.COMMAND, "x=tpru"]):
            monkeypatch.setattr(sys, "orig_argv", [sys.executable, *words])
            forks.register()
        assert len(started) == 1
        monkeypatch.setattr(hooks, "skipped", {"fork_workers"})
        forks.register()
        assert len(started) == 1

    def test_a_server_that_cannot_be_started_leaves_the_run_alone(
        self, config: Any, started: list[dict], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("no memory")

        monkeypatch.setattr(forks.subprocess, "Popen", fail)
        assert forks.SERVER not in constants_ppo.get_ppo_ray_runtime_env(config)["env_vars"]

    def test_a_gpu_is_asked_for(self, started: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
        assert not forks._start({}, cpu=False)
        assert forks._start({forks.ON_A_GPU: "1"}, cpu=False)
        assert forks._start({}, cpu=True)
        assert len(started) == 2


RAY = """
import json, os, sys
import ray

@ray.remote
class Worker:
    def __init__(self):
        self.imported = "torch" in sys.modules
        import torch
        self.threads = torch.get_num_threads()

    def tell(self):
        import torch
        assert open("/proc/self/cmdline").read().startswith("ray::Worker.tell")
        return self.imported, self.threads, torch.get_num_threads()

ray.init(address="local", num_cpus=4, include_dashboard=False)
forking = {"py_executable": " ".join([sys.executable, "-I", "-S", *sys.argv[1:]])}
found = []
for options in ({}, {"num_cpus": 2}):
    for env_vars in ({}, {"OMP_NUM_THREADS": "1"}):
        for also in ({}, forking):
            worker = Worker.options(**options, runtime_env={"env_vars": env_vars, **also}).remote()
            found.append(ray.get(worker.tell.remote()))
print(json.dumps(found))
"""


def test_rays_workers_compute_with_as_many_threads_as_new_ones() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        with serving("torch") as name:
            command = [sys.executable, "-c", RAY, fork_server.__file__, name]
            done = subprocess.run(command, env=here(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [imported for imported, *_ in found] == [False, True] * 4
    threads = [threads for _, *threads in found]
    assert threads[::2] == threads[1::2]
    assert threads[0] == [1, 1]
