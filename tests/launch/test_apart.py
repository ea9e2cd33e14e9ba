"""A function in a process of its own: its answer, its error, and an end without either."""

import os
import time

import pytest

from tpru_verl.launch.apart import ask


def pid_of(_: object) -> int:
    print("unfinished line", end="")
    return os.getpid()


def echo(request: object) -> object:
    return request


def refuses(request: str) -> None:
    raise ValueError(f"found {request!r}, expected another")


def ends(code: int) -> None:
    os._exit(code)


def breaks(_: object) -> None:
    raise ImportError("libcudart.so.13: no such file")


def sleeps(seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture(autouse=True)
def findable(monkeypatch: pytest.MonkeyPatch, root: object) -> None:
    """The child imports this module by its name."""
    paths = [str(root), f"{root}/tests/launch", os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def test_it_is_another_process_that_answers() -> None:
    assert ask(pid_of, None, seconds=60) != os.getpid()


def test_what_json_holds_comes_back() -> None:
    request = {"text": "你好\n\ud7ff", "numbers": [1, 2.5, None], "nested": {"a": True}}
    assert ask(echo, request, seconds=60) == request


def test_a_value_error_comes_back_as_one() -> None:
    with pytest.raises(ValueError, match=r"^found 'x', expected another$"):
        ask(refuses, "x", seconds=60)


def test_a_process_that_ends_without_an_answer_is_told_in_one_line() -> None:
    with pytest.raises(RuntimeError, match=r"^it ended its process: exit code 7$"):
        ask(ends, 7, seconds=60)
    with pytest.raises(RuntimeError, match=r"^it ended its process: ImportError: libcudart"):
        ask(breaks, None, seconds=60)


def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    with pytest.raises(RuntimeError, match=r"^found no answer in 2 s$"):
        ask(sleeps, 60, seconds=2)
