"""veRL 0.8.0: its own data set and reward loader take our rows and our reward, and our plugin refuses it."""

from pathlib import Path

from support.old_verl import graded_by_path, is_refused, is_refused_by_its_own_command, reads_prepared_rows


def test_its_own_data_set_reads_prepared_rows(checkpoint: Path, tmp_path: Path) -> None:
    reads_prepared_rows(checkpoint, tmp_path)


def test_our_reward_by_its_path() -> None:
    graded_by_path("reward.custom_reward_function")


def test_a_run_of_ours_is_refused() -> None:
    is_refused("0.8.0")


def test_a_recipe_of_ours_is_refused_before_ray_starts(tmp_path: Path) -> None:
    is_refused_by_its_own_command("0.8.0", tmp_path)
