"""A process that imports once what the processes of a run import, and forks itself for each of them.

    python fork_server.py serve NAME STARTER MODULE[:FUNCTION]...  # one a run, started by `forks`
    python fork_server.py NAME SCRIPT ARGUMENT...                  # for `python SCRIPT ARGUMENT...`

The second form ends at once: Ray knows its workers by their own words, not by the process that it started.
Where nothing is served, it becomes `python SCRIPT ARGUMENT...`. Only the standard library is imported here,
since all else would cost the second form what the fork saves.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import hashlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

# Beginnings of the names of variables that a process may have otherwise than the server had at its imports:
# veRL's and ours, Ray's, those that are read with the first use of a device, that of `_set_threads`, and
# vLLM's for its engine on a CPU. A forked engine goes without what is preloaded: libgomp, a faster `malloc`.
OF_A_PROCESS = (
    *("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "WG_", "TRANSFER_QUEUE_", "VERL_", "TPRU_"),
    *("RAY_", "PYTHONBREAKPOINT", "SPT_NOENV"),
    *("CUDA_", "NCCL_", "HIP_", "HSA_", "ROCR_", "ASCEND_", "HCCL_"),
    "OMP_NUM_THREADS",
    *("VLLM_WORKER_MULTIPROC_METHOD", "VLLM_DISABLE_SHARED_EXPERTS_STREAM", "VLLM_SSM_CONV_STATE_LAYOUT"),
    *("LD_PRELOAD", "NUMEXPR_MAX_THREADS", "TORCHINDUCTOR_CPP_DYNAMIC_THREADS"),
)
# Whole names: a shell's, by which Ray starts its workers, and of those above what the server has applied.
OF_A_SHELL = ("PWD", "OLDPWD", "SHLVL", "_")
OF_PATCHES = ("TPRU_SKIP_PATCHES", "VERL_PLATFORM", "VERL_USE_EXTERNAL_PLUGINS")
DEVICES = ("/dev/nvidia-uvm", "/dev/kfd", "/dev/davinci")  # open once a process computes on a device
PATIENCE = 10.0  # seconds for a request that has begun
WAITS = 45.0  # seconds that imports may take; Ray gives up on a worker that has not begun after 60
OOM = Path("/proc/self/oom_score_adj")  # Ray wants its workers to be killed first
_NUMBER = 8  # bytes of a length, a pid or an exit code
_MOST_FDS = 250  # the kernel's limit is 253
_PR_SET_PDEATHSIG = 1


def ask(
    name: str, argv: Sequence[str], environment: Mapping[str, str], fds: Sequence[int], *, bound: bool = False
) -> tuple[int, socket.socket]:
    """A fork that runs `python ARGV`: its pid, and a connection that brings its exit code.

    It has the files `fds` under the numbers that they have here, and all that a child of this process would
    have from it. `bound`: it is killed when this process ends. Raises OSError where nothing is served, or not
    soon enough, and where a variable differs, so that the server's imports will not do.
    """
    here = [_this_process()] if bound else []
    asked = {"name": name, "argv": list(argv), "environment": dict(environment), "fds": [*fds, *here]}
    body = json.dumps({**asked, "inherited": _inherited(), "bound_to": here}).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAITS)
    try:
        connection.connect(_address(name))
        _check_user(connection)
        socket.send_fds(connection, [_bytes(len(body))], asked["fds"])
        connection.sendall(body)
        pid = _number(connection)
    except BaseException:
        connection.close()
        raise
    finally:
        for fd in here:
            os.close(fd)
    connection.settimeout(PATIENCE)
    return pid, connection


def exit_code(connection: socket.socket) -> int:
    """Of a process of `ask` that has ended. 255 where the server has ended before, or does not answer."""
    try:
        return _number(connection)
    except OSError:
        return 255


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Variables that may decide what an import does, and that two environments have otherwise."""
    names = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    return sorted(
        name
        for name in names
        if name in OF_PATCHES or not (name in OF_A_SHELL or name.startswith(OF_A_PROCESS))
    )


def serve(name: str, starter: int, modules: Iterable[str]) -> tuple[dict[str, Any], list[int]]:
    """Import the modules, then fork as often as is asked.

    Returns in the forks alone: what was asked, and the files that came with it.
    """
    # It ends with its starter (on Linux: with the thread that started it); its forks do not.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != starter:
        sys.exit("tpru: the starter of the fork server has ended")
    os.setpgid(0, 0)  # Ctrl-C is for the starter
    before = dict(os.environ)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(_address(name))
    listener.listen(128)
    preload(modules)
    if devices := [file for file in _open_files() if file.startswith(DEVICES)]:
        sys.exit(f"tpru: no forks, as an import has opened {devices[0]}; each process imports for itself")
    gc.collect()
    gc.freeze()  # what a collection does not touch stays shared memory
    return _fork_when_asked(name, listener, before)


class _WantsRay(BaseException):
    """No `except ImportError` of the module that wants it catches this."""


class _NoRay:
    """Ends an import that wants Ray: a process learns its place in the cluster when it imports Ray."""

    @staticmethod
    def find_spec(name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        if name == "ray":
            raise _WantsRay
        return None


def preload(modules: Iterable[str]) -> None:
    """Import the modules and call their functions; of a module that wants Ray, import what does not."""
    sys.meta_path.insert(0, _NoRay)
    for entry in modules:
        module, _, function = entry.partition(":")
        with suppress(Exception, _WantsRay):  # the process that needs it meets the error
            __import__(module)
            if function:
                getattr(sys.modules[module], function)()
    sys.meta_path.remove(_NoRay)


def _open_files() -> list[str]:
    files = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            files.append(str(link.readlink()))
    return files


def _fork_when_asked(
    name: str, listener: socket.socket, before: dict[str, str]
) -> tuple[dict[str, Any], list[int]]:
    wakes, woken = socket.socketpair()
    woken.setblocking(False)
    signal.set_wakeup_fd(woken.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, wakes], [], [])
        if wakes in ready:
            wakes.recv(4096)
            _tell_ended(running)
        if listener not in ready:
            continue
        connection = listener.accept()[0]
        try:
            asked, fds = _request(name, connection, before)
        except (OSError, ValueError) as error:
            print(f"tpru: a process is started anew, not forked: {error}", file=sys.stderr, flush=True)
            connection.close()
            continue
        sys.stdout.flush()
        sys.stderr.flush()
        if (pid := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (listener, wakes, woken, connection, *running.values()):
                each.close()
            return asked, fds
        running[pid] = connection
        for fd in fds:
            os.close(fd)
        # Before the asker may end, and its group with it.
        for group in (pid, asked["inherited"]["group"]):
            with suppress(OSError):
                os.setpgid(pid, group)
        with suppress(OSError):
            connection.sendall(_bytes(pid))


def _request(
    name: str, connection: socket.socket, before: dict[str, str]
) -> tuple[dict[str, Any], list[int]]:
    """What is asked, with the variables that imports have set in the server, and the files.

    Raises OSError or ValueError for what is no request, and for one with other variables.
    """
    connection.settimeout(PATIENCE)
    _check_user(connection)
    length, fds, _, _ = socket.recv_fds(connection, _NUMBER, _MOST_FDS)
    try:
        asked = json.loads(_exactly(connection, int.from_bytes(length, "big")))
        environment = asked["environment"]
        if asked["name"] != name:
            raise PermissionError("found another name, expected that of the server")
        imported = {key: value for key, value in os.environ.items() if before.get(key) != value}
        unlike = [key for key in differing(environment, before) if environment.get(key) != imported.get(key)]
        if unlike:
            raise ValueError(f"found other values of {', '.join(unlike)}")
        if select.select([connection], [], [], 0)[0]:
            raise ConnectionError("it did not wait for the imports")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    kept = {key: value for key, value in imported.items() if environment.get(key) == before.get(key)}
    return {**asked, "environment": {**environment, **kept}}, fds


def _tell_ended(running: dict[int, socket.socket]) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if connection := running.pop(ended[0], None):
                with connection, suppress(OSError):
                    connection.sendall(_bytes(os.waitstatus_to_exitcode(ended[1])))


def become(asked: dict[str, Any], fds: list[int]) -> None:
    """Make a fork what `python ARGV` is when it begins, and run it to its end."""
    _take(fds, asked["fds"])
    program, *arguments = asked["argv"]
    if program == "-c":  # vLLM's; Ray has its own way to a title, which this one would bar
        with suppress(ImportError):  # once the variables have moved, it does not find its place
            __import__("setproctitle").getproctitle()
    os.environ.clear()
    os.environ.update(asked["environment"])
    _inherit(asked["inherited"])
    if asked["bound_to"]:
        threading.Thread(target=_end_with, args=asked["bound_to"], daemon=True).start()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # else all forks draw the same
    if "torch" in sys.modules:
        _set_threads(sys.modules["torch"])
    if program == "-c":
        code, *arguments = arguments
        sys.argv, sys.path[:0] = ["-c", *arguments], [""]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(main))  # as `python -c` does; our own user asks
    else:
        sys.argv, sys.path[:0] = [program, *arguments], [str(Path(program).parent)]
        runpy.run_path(program, run_name="__main__")


def _inherited() -> dict[str, Any]:
    """What a child has from its parent, beside files and variables."""
    status = Path("/proc/self/status").read_text()  # asking by `os.umask` would set it
    return {
        "cwd": str(Path.cwd()),
        "group": os.getpgid(0),
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "oom": OOM.read_text(),
        "umask": int(status.partition("Umask:")[2].split(maxsplit=1)[0], 8),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "cores": sorted(os.sched_getaffinity(0)),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "ignored": [int(n) for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN],
    }


def _inherit(given: dict[str, Any]) -> None:
    os.chdir(given["cwd"])
    os.umask(given["umask"])
    for take in (
        lambda: os.setpriority(os.PRIO_PROCESS, 0, given["nice"]),
        lambda: OOM.write_text(given["oom"]),
        lambda: resource.setrlimit(resource.RLIMIT_NOFILE, given["files"]),
        lambda: os.sched_setaffinity(0, given["cores"]),
    ):
        with suppress(OSError, ValueError):  # more than the server may
            take()
    for number in given["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, given["blocked"])


def _this_process() -> int:
    """A pidfd. Raises OSError where kernel or Python have none."""
    if not hasattr(os, "pidfd_open"):
        raise OSError(errno.ENOSYS, "found no os.pidfd_open, expected a Python that has it")
    return os.pidfd_open(os.getpid())


def _end_with(asker: int) -> None:
    """Kill this process when another one ends, which is given as a pidfd."""
    select.select([asker], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


def _take(fds: list[int], numbers: list[int]) -> None:
    """Give the files their numbers, which may be those of others among them, or of files of the server."""
    above = max([*fds, *numbers]) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(moved, numbers, strict=True):
        os.dup2(fd, number, inheritable=number <= 2)
        os.close(fd)


def _set_threads(torch: Any) -> None:
    """torch reads OMP_NUM_THREADS at its import. If nobody has set it, Ray does in a worker's first task."""
    from tpru_verl.plugin.hooks import replace, when_imported

    def read() -> None:
        wanted = os.environ["OMP_NUM_THREADS"].partition(",")[0]  # the others are for loops in loops
        if wanted.isdecimal() and wanted != "0":
            torch.set_num_threads(min(int(wanted), len(os.sched_getaffinity(0))))

    def read_when_ray_sets_it(utils: ModuleType) -> None:
        original = utils.set_omp_num_threads_if_unset

        def set_omp_num_threads_if_unset() -> bool:
            if is_set := original():
                read()
            return is_set

        replace(utils, "set_omp_num_threads_if_unset", set_omp_num_threads_if_unset)

    if "OMP_NUM_THREADS" in os.environ:
        read()
    else:
        when_imported("ray._private.utils")(read_when_ray_sets_it)


def _address(name: str) -> str:
    """In Linux's abstract namespace: no file is left behind, and the length of no folder matters.

    The machine lists addresses, so that this one does not tell the name, which the server wants to hear.
    """
    return f"\0tpru-{hashlib.sha256(name.encode()).hexdigest()}"


def _check_user(connection: socket.socket) -> None:
    """Names of the abstract namespace are open to every user of the machine. Raises PermissionError."""
    sizes = struct.Struct("3i")  # pid, user, group
    _, user, _ = sizes.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, sizes.size))
    if user != os.geteuid():
        raise PermissionError(f"found user {user} at the other end, expected {os.geteuid()}")


def _bytes(number: int) -> bytes:
    return number.to_bytes(_NUMBER, "big", signed=True)


def _number(connection: socket.socket) -> int:
    return int.from_bytes(_exactly(connection, _NUMBER), "big", signed=True)


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        if not (more := connection.recv(size - len(found))):
            raise ConnectionError("the fork server has closed the connection")
        found += more
    return bytes(found)


def main(arguments: list[str]) -> None:
    if arguments[0] == "serve":
        del sys.path[0]  # this file's folder
        become(*serve(arguments[1], int(arguments[2]), arguments[3:]))
        return
    name, *argv = arguments
    try:
        ask(name, argv, os.environ, fds=(0, 1, 2))
    except OSError:
        os.execv(sys.executable, [sys.executable, *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
