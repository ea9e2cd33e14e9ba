"""What is checked before a run starts, what it needs around it, and how it is ended."""

import re
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.doctor import prompts
from tpru_verl.doctor import recipe as doctor_recipe
from tpru_verl.doctor.check import FAIL
from tpru_verl.launch import checks as launch
from tpru_verl.launch import fitting
from tpru_verl.launch.settings import Settings
from tpru_verl.statistics import wilson


def recipe(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model/config.json").write_text("{}")
    return {
        "data": {"train_files": changes.get("train", "a/hub-id"), "val_files": ["a/b@test"]},
        "trainer": {
            "device": changes.get("device", "cpu"),
            "default_local_dir": str(tmp_path / "a/b"),
            "n_gpus_per_node": 1,
        },
        "actor_rollout_ref": {
            "model": {"path": changes.get("model", str(tmp_path / "model"))},
            "rollout": {
                "name": changes.get("engine", "vllm"),
                "checkpoint_engine": {"update_weights_bucket_megabytes": changes.get("bucket", 64)},
            },
        },
        "ray_kwargs": {"ray_init": {"address": changes.get("address")}},
    }


@pytest.fixture(autouse=True)
def no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


def test_a_sound_recipe_passes_and_a_hub_id_is_not_taken_for_a_path(tmp_path: Path) -> None:
    launch.check(recipe(tmp_path))
    launch.check(recipe(tmp_path, model="Qwen/Qwen2.5-VL-7B-Instruct"))


def test_only_a_cpu_recipe_needs_an_environment(tmp_path: Path) -> None:
    assert launch.environment(recipe(tmp_path, device="cuda")) == {}
    assert launch.environment(recipe(tmp_path))["VERL_PLATFORM"] == "cpu"


def test_a_processor_that_verl_does_not_know_is_refused(tmp_path: Path) -> None:
    sound = recipe(tmp_path)
    (tmp_path / "model/preprocessor_config.json").write_text('{"processor_class": "InternVLProcessor"}')
    with pytest.raises(ValueError, match=r"model\.path=.*: found InternVLProcessor, expected a processor"):
        launch.check(sound)


def test_a_model_of_text_is_refused(tmp_path: Path) -> None:
    sound = recipe(tmp_path)
    config = tmp_path / "model/config.json"
    config.write_text('{"model_type": "qwen2"}')
    with pytest.raises(ValueError, match=r"found a model of text alone \(qwen2\), expected one for images"):
        launch.check(sound)
    config.write_text('{"model_type": "qwen2_vl", "vision_config": {}}')
    launch.check(sound)


@pytest.mark.parametrize("kind", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_a_family_that_vllm_got_other_weights_of_is_refused(tmp_path: Path, kind: str) -> None:
    sound = recipe(tmp_path)
    (tmp_path / "model/config.json").write_text(f'{{"model_type": "{kind}", "vision_config": {{}}}}')
    with pytest.raises(ValueError, match=r"found Qwen3.*-MoE, a model with experts, expected one without"):
        launch.check(sound)


def test_bounds_that_the_processor_would_not_keep_are_refused(tmp_path: Path) -> None:
    sound = recipe(tmp_path)
    sound["data"] |= {"min_pixels": 16384, "max_pixels": 36864}
    own = '{"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}'  # Qwen3-VL's
    (tmp_path / "model/preprocessor_config.json").write_text(own)
    with pytest.raises(
        ValueError, match=r"found 16384 to 36864, expected bounds that meet 65536 to 16777216"
    ):
        launch.check(sound)
    sound["data"]["mm_processor_kwargs"] = {"min_pixels": 16384, "max_pixels": 36864}
    launch.check(sound)
    (tmp_path / "model/preprocessor_config.json").unlink()
    del sound["data"]["mm_processor_kwargs"]
    (tmp_path / "model/processor_config.json").write_text(f'{{"image_processor": {own}}}')
    with pytest.raises(ValueError, match="expected bounds that meet 65536"):
        launch.check(sound)


@pytest.mark.parametrize(
    ("engine", "device", "message"),
    [
        ("hf", "cuda", r"rollout\.name=hf: found no such engine in veRL 0\.9, expected vllm, sglang, trtllm"),
        ("sglang", "cpu", r"rollout\.name=sglang: found trainer\.device=cpu with it, expected vllm"),
        ("sglang", "cuda", r"rollout\.name=sglang: found no package sglang, expected it installed"),
        ("trtllm", "cuda", r"rollout\.name=trtllm: found no package tensorrt_llm, expected it installed"),
    ],
)
def test_an_engine_that_cannot_run_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, device: str, message: str
) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        launch.check(recipe(tmp_path, engine=engine, device=device))
    if "no package" in message:
        monkeypatch.setitem(launch.ENGINES, engine, "json")
        launch.check(recipe(tmp_path, engine=engine, device=device))
        monkeypatch.setitem(launch.ENGINES, engine, "no_such_package")
        monkeypatch.setenv("RAY_ADDRESS", "auto")  # it may be installed on the cluster
        launch.check(recipe(tmp_path, engine=engine, device=device))


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.path=/no/such/model: no such folder"):
        launch.check(recipe(tmp_path, model="/no/such/model"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json in it"):
        launch.check(recipe(tmp_path, model=str(tmp_path / "empty")))


@pytest.mark.parametrize("train", ["no.parquet", "/no/such", ["a/hub-id", "./no@train"], "word"])
def test_missing_data_is_named(tmp_path: Path, train: str | list[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.train_files=.*(no|word).*: no such file or folder"):
        launch.check(recipe(tmp_path, train=train))
    write_parquet(make_rows(3, seed=1), tmp_path / "train-0.parquet")
    launch.check(recipe(tmp_path, train=f"{tmp_path}@train"))
    with pytest.raises(FileNotFoundError, match=r"data\.train_files: nothing given"):
        launch.check(recipe(tmp_path, train=None))


def test_missing_columns_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"problem": ["x"], "images": ["y"]}), path)
    message = r"data\.train_files: .*rows\.parquet: found columns problem, images; expected problem, answer"
    with pytest.raises(ValueError, match=message):
        launch.check(recipe(tmp_path, train=str(path)))
    path.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet: not readable as parquet"):
        launch.check(recipe(tmp_path, train=str(path)))
    pq.write_table(pa.table({"problem": ["x"], "answer": ["A"], "images": ["y"]}), path)
    launch.check(recipe(tmp_path, train=str(path)))


def test_a_cpu_recipe_without_its_platform_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch.check_platform(recipe(tmp_path))  # conftest.py sets the variable
    monkeypatch.delenv("VERL_PLATFORM")
    launch.check_platform(recipe(tmp_path, device="cuda"))
    with pytest.raises(RuntimeError, match=r"trainer\.device=cpu: found no VERL_PLATFORM=cpu"):
        launch.check_platform(recipe(tmp_path))


def test_bare_main_ppo_checks_before_it_starts(tmp_path: Path) -> None:
    pytest.importorskip("verl")
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", "tpru_tiny_cpu"]
    overrides = ["data.train_files=/no/such.parquet", "data.val_files=/no/such.parquet"]
    done = subprocess.run([*command, *overrides], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = "tpru: data.train_files=/no/such.parquet: no such file or folder"
    assert done.stderr.splitlines()[-1] == last
    assert "Traceback" not in done.stderr


def test_too_little_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    full = {"/dev/shm": usage(0, 0, 64 * 2**20)}
    monkeypatch.setattr("shutil.disk_usage", lambda path: full.get(str(path), usage(0, 0, 10 * launch.GIB)))
    with pytest.raises(OSError, match="/dev/shm: 64 MiB free, expected 192"):
        launch.check(recipe(tmp_path))
    launch.check(recipe(tmp_path, device="cuda"))  # there weights go from GPU to GPU
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, launch.GIB // 2))
    with pytest.raises(OSError, match=r"trainer\.default_local_dir=.*: 0\.5 GiB free, expected 1"):
        launch.check(recipe(tmp_path))


def test_a_ray_cluster_that_would_be_joined_is_named(tmp_path: Path) -> None:
    note = tmp_path / "ray/ray_current_cluster"
    note.parent.mkdir()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        note.write_text(f"127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(RuntimeError, match="ray stop"):
            launch.check(recipe(tmp_path))
        launch.check(recipe(tmp_path, address="local"))  # a cluster of its own: none is joined
    launch.check(recipe(tmp_path))  # only the note is left


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (425, 1000, 0.3947, 0.4559)],
)
def test_wilson_interval(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("right", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(right: int, n: int) -> None:
    with pytest.raises(ValueError, match="right, n"):
        wilson(right, n)


class TestRows:
    def settings(self, tmp_path: Path, rows: int, **changes: Any) -> Settings:
        write_parquet(make_rows(rows, seed=1), tmp_path / "rows.parquet")
        data = {"train_files": str(tmp_path / "rows.parquet"), "val_files": [str(tmp_path / "rows.parquet")]}
        return Settings("veRL", {"data": {**data, "train_batch_size": 8, **changes}})

    def test_fewer_rows_than_a_batch_are_named(self, tmp_path: Path) -> None:
        few = self.settings(tmp_path, 7)
        with pytest.raises(ValueError, match=r"rows\.parquet: found 7 rows, expected 8 or more"):
            launch.enough_rows(few, launch.usable_rows(few))
        launch.enough_rows(self.settings(tmp_path, 8), 8)
        with pytest.raises(ValueError, match="found 5 rows"):
            launch.enough_rows(self.settings(tmp_path, 9, train_max_samples=5), 9)

    def test_rows_on_the_hub_are_not_counted(self, tmp_path: Path) -> None:
        hub = self.settings(tmp_path, 7, train_files=["org/name"])
        launch.enough_rows(hub, launch.usable_rows(hub))
        assert launch.row_count(hub) is None

    def test_an_unusable_row_is_named_unless_it_is_left_out(self, tmp_path: Path) -> None:
        import json

        broken = tmp_path / "broken.jsonl"
        broken.write_text(json.dumps({"problem": "Which? A. x B. y", "answer": "B", "images": []}) + "\n")
        given = [str(tmp_path / "rows.parquet"), str(broken)]
        with pytest.raises(ValueError, match=r"data\.train_files: 1 of 9 rows are broken") as told:
            launch.usable_rows(self.settings(tmp_path, 8, train_files=given))
        assert "broken.jsonl" in str(told.value)
        assert launch.usable_rows(self.settings(tmp_path, 8, train_files=given, on_invalid="skip")) == 8

    def test_a_row_with_more_images_than_vllm_takes_is_named(self, tmp_path: Path) -> None:
        given = self.settings(tmp_path, 8)
        most = max(len(row.images) for row in make_rows(8, seed=1))
        for limit, usable in ((most, 8), (0, 8)):
            config = {**given.config, "actor_rollout_ref": {"rollout": {"limit_images": limit}}}
            assert launch.usable_rows(Settings("veRL", config)) == usable
        few = {**given.config, "actor_rollout_ref": {"rollout": {"limit_images": most - 1}}}
        key = "actor_rollout_ref.rollout.limit_images"
        expected = f"images: found {most} images, expected {most - 1} or fewer; set {key}={most}"
        with pytest.raises(ValueError, match=re.escape(expected)):
            launch.usable_rows(Settings("veRL", few))


class TestFitting:
    """`data.filter_overlong_prompts` leaves rows out, which veRL finds once its data are up."""

    @pytest.fixture
    def run(self, tmp_path: Path, checkpoint: Path) -> Callable[..., Settings]:
        return partial(self.settings, tmp_path, checkpoint)

    def settings(self, tmp_path: Path, model: Path, lengths: list[int], **changes: Any) -> Settings:
        """A run on rows whose problems are followed by so many words."""
        rows = [
            replace(row, problem=f"{row.problem} {'word ' * length}")
            for row, length in zip(make_rows(len(lengths), seed=1), lengths, strict=True)
        ]
        write_parquet(rows, tmp_path / "rows.parquet")
        write_parquet(rows[:2], tmp_path / "val.parquet")
        data = {
            "train_files": str(tmp_path / "rows.parquet"),
            "val_files": str(tmp_path / "val.parquet"),
            "train_batch_size": 16,
            "max_prompt_length": 1000,
            "filter_overlong_prompts": True,
            "prompt_template": "bare",
            **changes,
        }
        return Settings("veRL", {"data": data, "actor_rollout_ref": {"model": {"path": str(model)}}})

    def test_enough_that_fit_are_enough(self, run: Callable[..., Settings]) -> None:
        fitting.check(run([0] * 16 + [2000] * 4))

    def test_fewer_than_a_batch_that_fit_are_refused(self, run: Callable[..., Settings]) -> None:
        given = run([0] * 10 + [2000] * 10)
        with pytest.raises(ValueError, match=r"found 10 rows of data\.train_files that fit, expected 16"):
            fitting.check(given)
        counted = prompts.look(given)  # the doctor's, of all rows
        assert counted.fitting == {"train_files": 10, "val_files": 2}
        assert doctor_recipe._lengths(given, counted).status == FAIL
        fitting.check(run([2000] * 20, filter_overlong_prompts=False))  # which the doctor refuses

    def test_validation_rows_that_are_all_too_long_are_refused(self, run: Callable[..., Settings]) -> None:
        with pytest.raises(ValueError, match=r"found 0 rows of data\.val_files that fit, expected 1"):
            fitting.check(run([2000] * 2 + [0] * 18))

    def test_rows_on_the_hub_and_unknown_models_are_the_trainers(
        self, run: Callable[..., Settings], tmp_path: Path
    ) -> None:
        fitting.check(run([0] * 2, train_files=["org/name"]))
        few, model = run([0] * 2), {"path": str(tmp_path)}
        fitting.check(Settings("veRL", {**few.config, "actor_rollout_ref": {"model": model}}))


class TestGpu:
    @pytest.fixture(autouse=True)
    def none_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setattr(launch, "has_gpu", lambda: False)

    def settings(self, device: str = "cuda", address: str | None = None) -> Settings:
        return Settings(
            "veRL", {"trainer": {"device": device}, "ray_kwargs": {"ray_init": {"address": address}}}
        )

    def test_a_gpu_recipe_without_one_is_refused_with_a_way_on(self) -> None:
        with pytest.raises(RuntimeError, match=r"device=cuda: found no GPU on this machine.*tpru_tiny_cpu"):
            launch.gpu_is_there(self.settings())

    def test_a_cluster_may_have_them_elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        launch.gpu_is_there(self.settings(device="cpu"))
        launch.gpu_is_there(self.settings(address="auto"))
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        launch.gpu_is_there(self.settings())

    def test_hidden_gpus_are_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(launch, "has_gpu", lambda: True)
        launch.gpu_is_there(self.settings())
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        with pytest.raises(RuntimeError, match="CUDA_VISIBLE_DEVICES hides all GPUs"):
            launch.gpu_is_there(self.settings())
