"""Which error of a log is the cause."""

from pathlib import Path

import pytest

from tpru_verl.launch.first_error import first_error

WORKER = "(RewardLoopWorker pid=12) "
RAY = """\
Error executing job with overrides: []
Traceback (most recent call last):
  File "main.py", line 1, in <module>
    ray.get(x)
ray.exceptions.RayTaskError(KeyError): \x1b[36mray::Runner.run()\x1b[39m (pid=15, ip=1.2.3.4)
  File "trainer.py", line 4, in fit
    batch["score"]
KeyError: 'score'
"""


def error_of(tmp_path: Path, text: str) -> str:
    log = tmp_path / "x.log"
    log.write_text(text)
    return first_error(log)


class TestFirstError:
    def test_a_workers_error_comes_before_the_drivers(self, tmp_path: Path) -> None:
        worker = ["Traceback (most recent call last):", '  File "r.py", line 3, in f', "LookupError: no page"]
        log = "".join(f"\x1b[36m{WORKER}\x1b[39m{line}\n" for line in worker) + RAY
        assert error_of(tmp_path, log) == "LookupError: no page (RewardLoopWorker pid=12, line 3 of the log)"

    def test_rays_wrapper_is_looked_through(self, tmp_path: Path) -> None:
        assert error_of(tmp_path, RAY) == "KeyError: 'score' (line 8 of the log)"

    def test_the_death_of_vllms_engine_is_looked_through(self, tmp_path: Path) -> None:
        """It says "see above", where nothing is when the engine was killed."""
        log = (
            "(S pid=1) ERROR 11-26 02:57:50 [async_llm.py:744] Traceback (most recent call last):\n"
            "(S pid=1) ERROR 11-26 02:57:50 [async_llm.py:744] vllm.v1.engine.exceptions.EngineDeadError: x\n"
            "Traceback (most recent call last):\n"
            "RuntimeError: vLLM's engine has died\n"
        )
        assert error_of(tmp_path, log).startswith("RuntimeError: vLLM's engine has died")

    def test_the_death_of_the_raylet_is_the_cause_of_every_other_error(self, tmp_path: Path) -> None:
        log = (
            f"{RAY}ray.exceptions.ActorUnavailableError: Socket closed\n"
            "\x1b[33m(raylet)\x1b[0m Raylet is terminated. Termination is unexpected. Possible reasons ...\n"
        )
        assert error_of(tmp_path, log).startswith("Ray's raylet died")
        assert error_of(tmp_path, log).endswith("(line 10 of the log)")

    def test_the_death_of_vllms_engine_alone_is_named(self, tmp_path: Path) -> None:
        log = f"{RAY.partition('KeyError')[0]}EngineDeadError): x\n  File\nvllm.EngineDeadError: see above\n"
        assert error_of(tmp_path, log).startswith("vLLM's engine died: killed, or out of memory (line")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux")
    def test_what_torch_says_of_a_full_disk_is_said_in_words(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        with pytest.raises((RuntimeError, OSError)) as caught:
            torch.save(torch.zeros(10**6), "/dev/full")
        log = f"Traceback (most recent call last):\n{caught.typename}: {caught.value}\n"
        assert error_of(tmp_path, log).startswith("a file could not be written, as on a full disk (line 2")
        log = "Traceback (most recent call last):\nRuntimeError: basic_ios::clear: iostream error\n"
        assert error_of(tmp_path, log).startswith("a file could not be written, as on a full disk (line 2")

    def test_lines_of_several_processes_may_mix(self, tmp_path: Path) -> None:
        log = (
            "(A pid=1) Traceback (most recent call last):\n(B pid=2) step:3\nValueError: not one\n"
            "(A pid=1) RuntimeError: cache is full\n"
        )
        assert error_of(tmp_path, log) == "RuntimeError: cache is full (A pid=1, line 4 of the log)"

    def test_what_was_told_as_a_warning_is_not_the_error(self, tmp_path: Path) -> None:
        log = (
            "(EngineCore pid=7) WARNING 11-22 10:00:00 [a.py:1] Traceback (most recent call last):\n"
            "(EngineCore pid=7) WARNING 11-22 10:00:00 [a.py:1] ImportError: no triton\n"
            "(EngineCore pid=7) ERROR 11-22 10:00:01 [core.py:9] Traceback (most recent call last):\n"
            "(EngineCore pid=7) ERROR 11-22 10:00:01 [core.py:9] MemoryError: no blocks\n"
        )
        assert error_of(tmp_path, log) == "MemoryError: no blocks (EngineCore pid=7, line 4 of the log)"

    def test_a_worker_that_died_is_named_where_nothing_else_is(self, tmp_path: Path) -> None:
        log = (
            "Traceback (most recent call last):\n"
            "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n"
        )
        assert error_of(tmp_path, log).startswith("ray.exceptions.ActorDiedError: The actor died")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "INFO: x\ntpru: data.train_files=a: no such file or folder\n",
                "data.train_files=a: no such file",
            ),
            ("one\nthe last line\n\n", "the last line"),
            ("", "the run printed nothing"),
        ],
    )
    def test_without_a_traceback(self, tmp_path: Path, text: str, expected: str) -> None:
        assert error_of(tmp_path, text).startswith(expected)


# As veRL 0.9.1 and Ray 2.60 print it; paths and repeated lines left out.
KILLED_REWARD_WORKER = """\
\x1b[33m(raylet)\x1b[0m A worker died or was killed while executing a task by an unexpected system error.
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m ERROR:tpru_verl: rollout of prompt 03faa493 failed
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m Traceback (most recent call last):
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m   File "agent_loop.py", line 249, in _score
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m     await worker.compute_score_batch.remote(data)
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m ray.exceptions.ActorDiedError: The actor died unexpectedly \
before finishing this task.
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m \tclass_name: RewardLoopWorker
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m \tactor_id: 799b158b5ba3b084d6bfeace01000000
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m \tpid: 31077
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m \tname: reward_loop_worker_0
\x1b[36m(TPRUAgentLoopWorker pid=31593)\x1b[0m The actor is dead because its worker process has died.
Error executing job with overrides: []
Traceback (most recent call last):
  File "main_ppo.py", line 9, in main
ray.exceptions.RayTaskError(AttributeError): \x1b[36mray::TaskRunnerV1.run()\x1b[39m (pid=30392)
  File "modeling.py", line 5, in forward
AttributeError: 'BaseModelOutputWithPooling' object has no attribute 'mean'
"""
# The plugin's watch over the workers tells the driver the same in words of its own.
WATCHED = """\
Traceback (most recent call last):
ray.exceptions.RayTaskError(RuntimeError): \x1b[36mray::TaskRunnerV1.run()\x1b[39m (pid=2)
ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tclass_name: WorkerDict
\tpid: 41
The actor is dead because its worker process has died.

During handling of the above exception, another exception occurred:

RuntimeError: a rollout worker died while the trainer waited for it: The actor died
"""


class TestDeadProcess:
    def test_it_is_named_instead_of_the_error_that_follows(self, tmp_path: Path) -> None:
        said = error_of(tmp_path, KILLED_REWARD_WORKER)
        assert said.startswith("RewardLoopWorker (pid 31077) died without an error of its own: killed")
        assert said.endswith("(TPRUAgentLoopWorker pid=31593, line 6 of the log)")

    def test_in_the_drivers_own_traceback(self, tmp_path: Path) -> None:
        assert error_of(tmp_path, WATCHED).startswith("WorkerDict (pid 41) died without an error of its own")

    def test_its_own_last_words_count_more_though_they_come_later(self, tmp_path: Path) -> None:
        last = (
            "(RewardLoopWorker pid=310) Traceback (most recent call last):\nValueError: of another\n"
            "(RewardLoopWorker pid=310) LookupError: of another\n"
            "(RewardLoopWorker pid=31077) Traceback (most recent call last):\n"
            "(RewardLoopWorker pid=31077) MemoryError: no room for the table\n"
        )
        said = error_of(tmp_path, KILLED_REWARD_WORKER + last)
        assert said.startswith("MemoryError: no room for the table (RewardLoopWorker pid=31077, line ")

    def test_lines_are_counted_as_an_editor_counts_them(self, tmp_path: Path) -> None:
        bar = "step 1\rstep 2\rstep 3\n"
        assert "line 4 of" in error_of(
            tmp_path, bar * 2 + "Traceback (most recent call last):\nKeyError: 1\n"
        )
