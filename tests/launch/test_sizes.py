"""Batches and ranks that do not come out even on the GPUs are refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from support.doctor import settings

from tpru_verl.doctor import recipe as doctor
from tpru_verl.doctor.check import FAIL
from tpru_verl.launch import cluster, sizes, train

FILES = ["data.train_files=a.parquet", "data.val_files=b.parquet"]
LORA = [*FILES, "+tpru=lora"]


def on(gpus: int) -> str:
    return f"trainer.n_gpus_per_node={gpus}"


@pytest.mark.parametrize("gpus", [2, 4])
def test_the_line_of_the_docs_takes_two_or_four_gpus(gpus: int, tmp_path: Path) -> None:
    pytest.importorskip("verl")
    overrides = [*LORA, on(gpus)]
    assert train.train("tpru_qwen3vl_8b", overrides, out=tmp_path / "run", dry_run=True) == 0


def test_three_gpus_are_refused_where_a_run_is_composed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("verl")
    message = r"x 5 samples: found no multiple of 3 GPUs; \S+=\d+ would do"
    with pytest.raises(ValueError, match=message):
        train.train("tpru_qwen3vl_8b", [*LORA, on(3)], out=tmp_path / "run", dry_run=True)
    with pytest.raises(ValueError, match=message):
        cluster.script("slurm", "tpru_qwen3vl_8b", [*LORA, on(3)])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 192, "mini_batch": 96, "gpus": 3}, r"tensor_model_parallel_size=2 does not divide 3 GPUs"),
        ({"batch": 255, "mini_batch": 255, "gpus": 4}, "ppo_mini_batch_size=255 x 5 samples: found no"),
        (
            {"batch": 100},
            "found less than actor_rollout_ref.actor.ppo_mini_batch_size=128, expected at least",
        ),
        (
            {"micro_batch": 3},
            "ppo_micro_batch_size_per_gpu=3 does not divide 80 samples a GPU; .*=2 would do",
        ),
        ({"micro_log_prob": 48}, "micro_batch_size_per_gpu=48 does not divide 160 samples a GPU"),
    ],
)
def test_doctor_and_train_refuse_the_same(change: dict[str, Any], message: str) -> None:
    given = settings(**change)
    with pytest.raises(ValueError, match=message):
        sizes.check(given)
    lines = [*doctor.batch_lines(given), *doctor._tensor_parallel(given)]
    assert any(line.status == FAIL for line in lines)


def test_all_that_does_not_come_out_even_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="does not divide") as refused:
        sizes.check(settings(micro_batch=3, micro_log_prob=48))
    first, second = str(refused.value).splitlines()
    assert "log_prob_micro_batch_size_per_gpu=48 does not divide 160 samples a GPU; " in first
    assert "ppo_micro_batch_size_per_gpu=3 does not divide 80 samples a GPU; " in second


@pytest.mark.parametrize("trainer", ["veRL", "EasyR1"])
def test_a_fix_is_accepted(trainer: str) -> None:
    sizes.check(settings(trainer))
    given = settings(trainer, gpus=3)
    for _ in range(5):  # each fix may ask for the next
        uneven = [*sizes.uneven_batches(given), *sizes.uneven_ranks(given)]
        if not uneven:
            break
        key, _, value = uneven[0].fix.partition("=")
        assert key == given.key(uneven[0].name)
        section: Any = given.config
        for part in key.split(".")[:-1]:
            section = section[part]
        section[key.rpartition(".")[2]] = int(value)
    sizes.check(given)


def test_one_response_a_prompt_is_for_other_estimators_than_groups() -> None:
    """`launch.overlays` refuses it where the estimator compares responses."""
    sizes.check(settings(n=1, micro_batch=4, micro_log_prob=16))


def test_gpus_that_share_sequences_share_micro_batches(tmp_path: Path) -> None:
    for trainer in ("veRL", "EasyR1"):
        sizes.check(settings(trainer, sequence_parallel=8, micro_batch=64))
        sizes.check(
            settings(trainer, sequence_parallel=4, n=1, mini_batch=2, micro_batch=1, micro_log_prob=1)
        )
        with pytest.raises(
            ValueError, match=r"=96 does not divide 640 samples a group of GPUs; \S+=80 would"
        ):
            sizes.check(settings(trainer, sequence_parallel=8, micro_batch=96))
        with pytest.raises(ValueError, match=r"=3 x 5 samples: found no multiple of 2 groups of GPUs"):
            sizes.check(settings(trainer, sequence_parallel=4, mini_batch=3))
    pytest.importorskip("verl")
    given = ["actor_rollout_ref.actor.ulysses_sequence_parallel_size=8"]
    given += ["actor_rollout_ref.model.use_remove_padding=true"]
    given += ["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=64"]
    assert train.train("tpru_7b", [*FILES, *given], out=tmp_path / "run", dry_run=True) == 0


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"batch": 500}, "batch_size=384"),  # not 1024; 496 and 504 are no whole number of updates
        ({"batch": 500, "mini_batch": 8}, "batch_size=496"),
        ({"batch": 252, "mini_batch": 84, "n": 6, "gpus": 16, "micro_batch": 1}, "mini_batch_size=80"),
    ],
)
def test_the_nearest_size_is_no_larger_than_it_has_to_be(change: dict[str, Any], fix: str) -> None:
    assert sizes.uneven_batches(settings(**change))[0].fix.endswith(fix)


def test_verls_update_refuses_a_rest_of_a_batch() -> None:
    """So a fix is a multiple of the mini-batch, with veRL, too: here the share of one of eight GPUs."""
    torch = pytest.importorskip("torch")
    tensordict_utils = pytest.importorskip("verl.utils.tensordict_utils")
    share = tensordict_utils.get_tensordict({"x": torch.zeros(504 * 5 // 8, 1)})
    with pytest.raises(AssertionError, match="315 % 80 != 0"):
        tensordict_utils.make_iterator(share, mini_batch_size=128 * 5 // 8, epochs=1)
