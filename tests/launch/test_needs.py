"""What a run needs of packages and of Ray's CPUs, against veRL's own numbers."""

import re
from typing import Any

import pytest

from tpru_verl import trainers
from tpru_verl.launch import needs
from tpru_verl.launch.settings import Settings

pytestmark = pytest.mark.usefixtures("no_cluster")


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def settings(
    trainer: str = trainers.VERL, *, packed: bool = True, cpus: int | None = 64, **changes: Any
) -> Settings:
    """One machine of 8 GPUs with veRL's defaults; `changes`: attention, units, and keys of `trainer`."""
    model = {
        "use_remove_padding": packed,
        "override_config": {"attn_implementation": changes.pop("attention", None)},
    }
    storage = {"num_data_storage_units": changes.pop("units", 8)}
    ray_init = {"num_cpus": cpus, "address": changes.pop("address", None)}
    config = {
        "actor_rollout_ref": {"model": model},
        "transfer_queue": {"backend": {"storage_backend": "SimpleStorage", "SimpleStorage": storage}},
        "ray_kwargs": {"ray_init": ray_init},
        "trainer": {"device": "cuda", "nnodes": 1, "n_gpus_per_node": 8, **changes},
    }
    return Settings(trainer, config)


@pytest.mark.parametrize(
    ("packed", "attention", "needed"),
    [
        (True, None, "actor_rollout_ref.model.use_remove_padding=True"),
        (True, "sdpa", "actor_rollout_ref.model.use_remove_padding=True"),
        (False, None, "override_config.attn_implementation=flash_attention_2"),
        (False, "flash_attention_2", "override_config.attn_implementation=flash_attention_2"),
        (False, "sdpa", ""),
    ],
)
def test_flash_attn_is_asked_for_where_verl_uses_it(
    packed: bool, attention: str | None, needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = settings(packed=packed, attention=attention)
    monkeypatch.setattr(trainers, "version_of", lambda name: None)
    if needed:
        with pytest.raises(RuntimeError, match=re.escape(needed)) as raised:
            needs.check(run)
        assert f"expected it; {needs.FLASH_ATTN}, or add the overlay +tpru=sdpa" in str(raised.value)
    else:
        needs.check(run)
    needs.check(settings(packed=packed, attention=attention, device="cpu"))
    needs.check(settings(packed=packed, attention=attention, address="auto"))  # its packages are elsewhere
    needs.check(settings(trainers.EASYR1, packed=packed))
    monkeypatch.setattr(trainers, "version_of", lambda name: "2.8.3")
    needs.check(run)


@pytest.mark.parametrize(
    ("gpus", "units", "cpus", "fix"),
    [
        (1, 8, 12, None),
        (1, 8, 11, "=2, or let Ray count more"),
        (1, 8, 5, "=1, or let Ray count more"),
        (1, 1, 4, "ever; let Ray count more than there are with ray_kwargs.ray_init.num_cpus=5"),
        (8, 8, 33, None),
        (8, 8, 32, "num_data_storage_units=2"),
    ],
)
def test_ray_has_the_cpus_that_verl_keeps(gpus: int, units: int, cpus: int, fix: str | None) -> None:
    run = settings(units=units, cpus=cpus, n_gpus_per_node=gpus)
    if fix is None:
        assert needs.ray_cpus(run).startswith(f"{cpus} of {cpus} needed: the settings tell Ray ")
    else:
        with pytest.raises(RuntimeError, match=re.escape(fix)):
            needs.ray_cpus(run)
        needs.ray_cpus(settings(units=units, cpus=cpus, n_gpus_per_node=gpus, nnodes=2))  # only Ray knows


def test_without_a_number_ray_counts_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "_own_cpus", lambda: 4)
    with pytest.raises(RuntimeError, match="num_cpus=None: found 4 CPUs for Ray, expected 12"):
        needs.ray_cpus(settings(cpus=None, n_gpus_per_node=1))
    monkeypatch.undo()
    assert needs._own_cpus() >= 1


def test_the_numbers_are_those_of_verl() -> None:
    """One of these that changes makes the check wrong."""
    ray_base = pytest.importorskip("verl.single_controller.ray.base")
    storage = pytest.importorskip("transfer_queue.storage.simple_storage")
    controller = pytest.importorskip("transfer_queue.controller")

    def cpus(actor: Any) -> int:
        return actor._default_options["num_cpus"]

    assert ray_base.ResourcePoolManager.max_colocate_count == needs.A_GPU
    assert cpus(storage.SimpleStorageUnit) == needs.A_UNIT
    assert cpus(controller.TransferQueueController) == needs.CONTROLLER
