"""What counts as progress of a run, and what a run prints though it hangs."""

from hypothesis import given
from hypothesis import strategies as st

from tpru_verl.launch.progress import Progress

PENDING = b"(R pid=9) INFO:2026-01-01 10:0%d:00,123:pending: 0, running: 3, finished: %d, failure: 0\n"
STEP = b"(TaskRunner pid=9) step:%d - actor/loss:0.%d\n"
BAR = "\r(TaskRunner pid=9) Training Progress:  {0}%|█  | {0}/100 [0{1}:00<?, ?it/s]\r"


def test_a_line_unlike_all_before_it_is_progress_once() -> None:
    progress = Progress()
    assert progress.read(b"loading shard 1\n")
    assert not progress.read(b"loading shard 2\n")
    assert progress.read(b"started vLLM\n")


def test_a_heartbeat_is_none() -> None:
    progress = Progress()
    progress.read(PENDING % (0, 4) + b"(raylet) +1m5s: 0xab12 cannot be scheduled\n")
    for minute in range(1, 9):
        assert not progress.read(PENDING % (minute, 4))
        assert not progress.read(b"(raylet) +%dm7s: 0xcd%d cannot be scheduled\n" % (minute, minute))


def test_each_finished_rollout_and_step_is_progress() -> None:
    progress = Progress()
    for number in range(1, 9):
        assert progress.read(PENDING % (number, number))
        assert progress.read(STEP % (number, number))
        assert progress.read(b"Step %d\n" % number)  # as EasyR1 prints it
        assert not progress.read(STEP % (number, number + 1))


def test_a_bar_is_progress_when_its_count_moves() -> None:
    progress = Progress()
    progress.read(BAR.format(3, 0).encode())
    assert not progress.read(BAR.format(3, 1).encode())
    assert progress.read(BAR.format(4, 2).encode())


@given(st.lists(st.integers(1, 40), max_size=30))
def test_output_may_be_cut_anywhere(cuts: list[int]) -> None:
    text = b"".join(STEP % (number // 2, number) for number in range(8))
    whole, cut = Progress(), Progress()
    expected = sum(whole.read(line + b"\n") for line in text.splitlines())
    found, at = 0, 0
    for size in [*cuts, len(text)]:
        for byte in range(at, min(at + size, len(text))):
            found += cut.read(text[byte : byte + 1])
        at += size
    assert found == expected == 4
