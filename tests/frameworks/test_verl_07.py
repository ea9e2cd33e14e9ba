"""veRL 0.7.0: its own data set and reward loader take our rows and our reward, and our plugin refuses it."""

from pathlib import Path

from support.old_verl import graded_by_path, is_refused, reads_prepared_rows


def test_its_own_data_set_reads_prepared_rows(checkpoint: Path, tmp_path: Path) -> None:
    reads_prepared_rows(checkpoint, tmp_path)


def test_our_reward_by_its_path() -> None:
    graded_by_path("custom_reward_function")


def test_a_run_of_ours_is_refused() -> None:
    is_refused("0.7.0")
