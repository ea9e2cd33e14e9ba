"""EasyR1's own code, with our recipes, rows and reward: up to its check for GPUs.

The same tests run with another EasyR1: TPRU_EASYR1=CHECKOUT. vLLM is a stub (`stubs`), as it is imported and
not used before that check; all else is real.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import pytest
from support.old_verl import for_transformers_4
from support.responses import SCORES
from support.rows import picture, reordering, write_parquet

from tpru_verl import recipes, trainers
from tpru_verl.data.prepare import PrepareOptions, prepare
from tpru_verl.data.source.forms import Source
from tpru_verl.data.source.rows import read_rows
from tpru_verl.data.tokens.prompts import Asked, EasyR1Counter
from tpru_verl.launch import checks as launch
from tpru_verl.launch import easyr1, plan, run
from tpru_verl.launch import reward_trial as preflight
from tpru_verl.launch.settings import Settings
from tpru_verl.models import FAMILIES
from tpru_verl.prompts import render
from tpru_verl.recipes import overlays
from tpru_verl.recipes.for_easyr1 import PAPER
from tpru_verl.runs.history import HistoryReader
from tpru_verl.runs.logs import RunFiles
from tpru_verl.runs.rollouts import graded, read_rollouts

CHECKOUT = os.environ.get("TPRU_EASYR1", "")
STUBS = Path(__file__).parent / "stubs"
sys.path[:0] = [path for path in (CHECKOUT, str(STUBS)) if path]
# What is started, Ray's workers too, imports the same EasyR1, the stub and this project; and finds no GPU.
ROOT = str(Path(__file__).parents[2])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (CHECKOUT, str(STUBS), ROOT)))
os.environ["CUDA_VISIBLE_DEVICES"] = ""


TRAINER = trainers.find()
HEAD = TRAINER.knows(FAMILIES["qwen3_vl"])
NAMES = [name for name in recipes.names(trainers.EASYR1) if HEAD or "qwen3vl" not in name]
Config = dict[str, Any]


@pytest.fixture(scope="module")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return for_transformers_4(checkpoint, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tpru data prepare` writes, of pictures below, between and above the bounds."""
    folder = tmp_path_factory.mktemp("rows")
    sizes = [(40, 30), (150, 190), (640, 480), (333, 77), (90, 400)]
    rows = [
        reordering(i, images=[picture(100 * i + k, sizes[(i + k) % len(sizes)]) for k in range(4)])
        for i in range(12)
    ]
    source = Source.open(str(write_parquet(folder / "rows.parquet", rows)))
    prepare(source, folder / "out", PrepareOptions(split={"train": 0.7, "test": 0.3}), workers=1)
    assert {path.name for path in (folder / "out").iterdir()} == {"README.md", "manifest.json", "data"}
    return folder / "out" / "data"


def overrides(prepared: Path, model: Path) -> list[str]:
    return [
        f"data.train_files={prepared}@train",
        f"data.val_files={prepared}@test",
        f"worker.actor.model.model_path={model}",
        "data.max_prompt_length=700",
    ]


@pytest.fixture(scope="module")
def composed(prepared: Path, model: Path) -> Config:
    """As `plan` composes it, in a process of its own."""
    return cast(Config, plan.compose("tpru_7b", overrides(prepared, model)).settings.config)


def configured(arguments: Sequence[str]) -> Any:
    """EasyR1's configuration object, by the lines of its own `main`."""
    from omegaconf import OmegaConf
    from verl.trainer.config import PPOConfig  # pyright: ignore

    given = OmegaConf.from_cli(list(arguments))
    file = given.pop("config")
    merged = OmegaConf.merge(OmegaConf.structured(PPOConfig()), OmegaConf.load(file), given)
    config: Any = OmegaConf.to_object(merged)
    config.deep_post_init()
    return config


def processor_of(config: Any) -> Any:
    from verl.utils.tokenizer import get_processor  # pyright: ignore

    path = config.worker.actor.model.model_path
    return get_processor(path, override_chat_template=None, trust_remote_code=False, use_fast=True)


class TestConfiguration:
    def test_what_we_compose_is_what_easyr1_would(self) -> None:
        arguments = recipes.easyr1_arguments("tpru_7b", ["data.seed=3"])
        assert easyr1.compose(arguments) == json.loads(json.dumps(configured(arguments).to_dict()))

    @pytest.mark.parametrize("name", NAMES)
    def test_a_recipe_names_files_that_are_there(self, name: str) -> None:
        theirs = configured(recipes.easyr1_arguments(name))
        assert Path(theirs.data.format_prompt).is_file()
        assert Path(theirs.worker.reward.reward_function).is_file()
        assert theirs.worker.reward.reward_function_name == "compute_score"
        assert theirs.data.train_files.split("@")[0] != theirs.data.val_files.split("@")[0]

    @pytest.mark.parametrize("name", NAMES)
    def test_the_bare_command_finds_its_files_from_a_clone(
        self, name: str, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(root)
        theirs = configured([f"config=recipes/easyr1/{name}.yaml"])
        assert Path(theirs.data.format_prompt).is_file()
        assert Path(theirs.worker.reward.reward_function).samefile(root / "reward_fns/easyr1.py")

    def test_paper_on_top_is_the_paper_recipe(self) -> None:
        over = configured(recipes.easyr1_arguments("tpru_7b", ["+tpru=paper"]))
        file = configured(recipes.easyr1_arguments("tpru_7b_paper"))
        assert (over.data, over.worker, over.algorithm) == (file.data, file.worker, file.algorithm)
        assert set(PAPER) == {"data.format_prompt", "worker.reward.reward_function_kwargs.preset"}

    @pytest.mark.parametrize(
        ("item", "message"),
        [
            (
                "data.trainfiles=x",
                r"Key 'trainfiles' .*: found no key 'data.trainfiles', expected data.train_files",
            ),
            ("worker.rollout.n=many", r"'many' .* could not be converted to Integer \(worker.rollout.n\)"),
        ],
    )
    def test_a_mistake_is_one_line(self, item: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            plan.compose("tpru_7b", [item])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("overlay", "message"),
        [
            ("tis", r"\+tpru=tis: found EasyR1 .*, expected veRL, .*; EasyR1 .* has no keys for it"),
            ("[paper,dapo]", r"\+tpru=dapo: .*; with EasyR1 .*, set algorithm\.online_filtering=true"),
            ("papre", r"\+tpru: found 'papre', expected paper, the overlay for EasyR1"),
        ],
    )
    def test_overlays_for_verl_are_told(self, overlay: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            plan.compose("tpru_7b", [f"+tpru={overlay}"])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("overlay", ["lora", "gspo", "cispo", "dapo"])
    def test_a_version_with_keys_of_its_own_is_told_them(self, overlay: str) -> None:
        keys, word = overlays._EASYR1[overlay]
        trainer = trainers.find()
        files = [trainer.folder / name for name in ("workers/actor/config.py", "trainer/config.py")]
        config = "".join(file.read_text(encoding="utf-8") for file in files)
        told = rf"set {re.escape(keys)}" if word in config else "has no keys for it"
        with pytest.raises(ValueError, match=told):
            plan.compose("tpru_7b", [f"+tpru={overlay}"])
        if word in config:
            assert configured(recipes.easyr1_arguments("tpru_7b", shlex.split(keys)))

    def test_recipes_of_the_other_host_or_version_are_refused(self) -> None:
        with pytest.raises(ValueError, match="'tpru_tiny_cpu', a recipe for veRL alone, beside EasyR1"):
            plan.compose("tpru_tiny_cpu")
        if not HEAD:
            with pytest.raises(ValueError, match=r"expected EasyR1 0\.3\.3"):
                plan.compose("tpru_qwen3vl_4b")


class TestData:
    def test_rows_prompts_and_token_counts(self, prepared: Path, model: Path) -> None:
        from verl.utils import dataset

        config = configured(recipes.easyr1_arguments("tpru_7b", overrides(prepared, model)))
        processor = processor_of(config)
        kind: Any = vars(dataset)["RLHFDataset"]
        found = kind(
            data_path=config.data.train_files,
            tokenizer=processor.tokenizer,
            processor=processor,
            prompt_key=config.data.prompt_key,
            answer_key=config.data.answer_key,
            image_key=config.data.image_key,
            max_prompt_length=config.data.max_prompt_length,
            format_prompt=config.data.format_prompt,
            min_pixels=config.data.min_pixels,
            max_pixels=config.data.max_pixels,
            filter_overlong_prompts=False,
        )
        source = Source.open(f"{prepared}@train")
        rows = [row for unit in source.units for row in read_rows(unit, source.form(unit))]
        counter = EasyR1Counter(processor, "tpru", {"min_pixels": 16384, "max_pixels": 36864})
        counts = counter.count(Asked.of(row) for row in rows)
        assert len(found) == len(rows) > 5
        for row, count, theirs in zip(rows, counts, found, strict=True):
            assert theirs["ground_truth"] == row.answer
            assert len(theirs["multi_modal_data"]["images"]) == 4
            assert int(theirs["attention_mask"].sum()) == count
            text = processor.tokenizer.decode(theirs["raw_prompt_ids"])
            assert render(str(row.problem), None).rpartition("<image>")[2] in text

    def test_loaders_keep_the_splits_apart(self, prepared: Path, model: Path) -> None:
        from verl.trainer.data_loader import create_dataloader  # pyright: ignore

        more = ["data.rollout_batch_size=4", "data.filter_overlong_prompts=false"]
        config = configured(recipes.easyr1_arguments("tpru_7b", [*overrides(prepared, model), *more]))
        processor = processor_of(config)
        train, test = create_dataloader(config.data, processor.tokenizer, processor)
        assert len(train) == len(train.dataset) // 4
        assert len(train.dataset) + len(test.dataset) == 12
        batch = test.collate_fn([test.dataset[i] for i in range(len(test.dataset))])
        assert batch["input_ids"].shape == (len(test.dataset), 700)
        assert batch["position_ids"].shape[1] == 4  # mRoPE, which the published pins turned off

    def test_what_is_missing_is_named_before_the_start(
        self, composed: Config, prepared: Path, tmp_path: Path
    ) -> None:
        launch.check_easyr1(composed)
        for section, key, value, message in (
            # README and manifest lie there: which of the three EasyR1 would list first is up to the disk.
            ("data", "val_files", f"{prepared.parent}@test", r"data files of one kind; give .*/out/data"),
            ("data", "train_files", f"{tmp_path}/no@train", r"data\.train_files=.*no such file or folder"),
            ("data", "prompt_key", "ask", r"expected ask, answer, images; data\.\{prompt,answer,image\}_key"),
            ("model", "model_path", str(tmp_path), r"model_path=.*no config\.json in it"),
            ("reward", "reward_function", None, r"reward_function: found no such file"),
        ):
            config = deepcopy(composed)
            sections = {"data": config["data"], "reward": config["worker"]["reward"]}
            sections["model"] = config["worker"]["actor"]["model"]
            sections[section][key] = value
            with pytest.raises((OSError, ValueError), match=message):
                launch.check_easyr1(config)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[Any]:
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False)
    yield ray
    ray.shutdown()


class TestReward:
    def batch(self, tokenizer: Any) -> Any:
        import torch
        from verl.protocol import DataProto  # pyright: ignore

        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in SCORES]
        longest = max(map(len, encoded))
        ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in encoded]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in encoded]
        tensors = {"responses": torch.tensor(ids), "response_mask": torch.tensor(mask)}
        return DataProto.from_dict(tensors, {"ground_truth": ["B"] * len(encoded)})

    @pytest.mark.parametrize("kind", ["batch", "sequential"])
    def test_manager_scores_a_batch_in_a_ray_actor(self, ray_here: Any, kind: str, model: Path) -> None:
        from transformers import AutoTokenizer
        from verl.workers.reward import function  # pyright: ignore

        config = configured(recipes.easyr1_arguments("tpru_7b")).worker.reward
        if hasattr(function, "AutoRewardManager"):
            manager = function.AutoRewardManager
            module = Path(config.reward_function)
            assert f'REWARD_TYPE = "{"batch"}"' in module.read_text()
            if kind == "sequential":
                other = model / "sequential.py"
                other.write_text(module.read_text().replace('"batch"', '"sequential"'))
                config.reward_function = str(other)
        else:
            manager = getattr(function, f"{kind.title()}FunctionRewardManager")
        tokenizer = AutoTokenizer.from_pretrained(model)
        actor = ray_here.remote(manager).options(num_cpus=1).remote(config, tokenizer)
        rewards, metrics = ray_here.get(actor.compute_reward.remote(self.batch(tokenizer)))
        ray_here.kill(actor)
        assert rewards.sum(-1).tolist() == list(SCORES.values()) == metrics["overall"]
        assert metrics["accuracy"] == [1.0, 0.0, 1.0, 0.0]

    def test_preflight_calls_it_as_the_manager_does(self, composed: Config, tmp_path: Path) -> None:
        report = preflight.try_reward(Settings(trainers.EASYR1, composed))
        assert (report.right, report.wrong) == (1.0, 0.125)
        broken = deepcopy(composed)
        broken["worker"]["reward"] |= {
            "reward_function": str(tmp_path / "broken.py"),
            "reward_function_kwargs": {},
        }
        (tmp_path / "broken.py").write_text(
            "def compute_score(inputs):\n    return [{'overall': 'much'}] * len(inputs)\n"
        )
        with pytest.raises(ValueError, match=r"broken\.py: overall: found 'much', expected a number"):
            preflight.try_reward(Settings(trainers.EASYR1, broken))


@pytest.fixture
def started(prepared: Path, model: Path) -> list[str]:
    """Changes to a recipe with which the trainer starts on the prepared rows."""
    return [
        *overrides(prepared, model),
        "data.rollout_batch_size=8",
        "data.filter_overlong_prompts_workers=1",
        "worker.actor.global_batch_size=8",
        "worker.actor.micro_batch_size_per_device_for_experience=1",
        "worker.actor.micro_batch_size_per_device_for_update=1",
    ]


def test_tpru_train_refuses_a_machine_without_gpus(started: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from tpru_verl.cli import main; main()", "train", "tpru_7b", *started]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    assert "hides all GPUs, expected one" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_the_real_trainer_starts_and_ends_at_its_check_for_gpus(
    started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray, runner, tokenizer, processor, managers as actors, the filter, both loaders, the trainer itself."""
    monkeypatch.chdir(tmp_path)
    assert run.run(plan.compose("tpru_7b", started, tmp_path), tmp_path) == 1
    out, err = capfd.readouterr()
    assert "Size of train dataloader: 1" in out
    error = next(line for line in err.splitlines() if line.startswith("tpru: "))
    assert error.startswith("tpru: ValueError: Total available GPUs 0 is less than total desired GPUs 8.")
    assert "Total available GPUs 0" in (tmp_path / "train.log").read_text()


def test_the_environment_is_the_one_that_is_promised() -> None:
    assert TRAINER.name == trainers.EASYR1
    assert trainers.unfit(TRAINER) == []
    assert TRAINER.version.startswith("0.3.3" if CHECKOUT else "0.3.2")


class TestInstall:
    @pytest.fixture(scope="class")
    def python(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """An environment with all that this one has, and where pip may install."""
        folder = tmp_path_factory.mktemp("env")
        venv.create(folder, with_pip=False)
        (site,) = (folder / "lib").glob("python3*/site-packages")
        own = sysconfig.get_path("purelib")
        (site / "zz_environment.pth").write_text(f"import site; site.addsitedir({own!r})\n")
        return folder / "bin" / "python"

    def pip(self, python: Path, *arguments: str) -> str:
        command = [sys.executable, "-m", "pip", "--python", str(python), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_installing_us_changes_no_installed_version(
        self, python: Path, root: Path, tmp_path: Path
    ) -> None:
        """Without an index: what would have to be fetched would fail, and what would be moved would show."""
        source = tmp_path / "source"
        leave = shutil.ignore_patterns(".git", ".venv", "outputs", "*.egg-info", "__pycache__")
        shutil.copytree(root, source, symlinks=True, ignore=leave)
        before = self.frozen(python)
        assert {"lazyllm-verl", "transformers", "omegaconf"} <= before.keys()
        self.pip(python, "install", "--no-index", "--no-build-isolation", str(source))
        after = self.frozen(python)
        assert after.pop("tpru-verl").startswith("0.")
        before.pop("tpru-verl", None)
        assert after == before

    def frozen(self, python: Path) -> dict[str, str]:
        found = json.loads(self.pip(python, "list", "--format", "json"))
        return {package["name"]: package["version"] for package in found}

    def test_importing_us_brings_neither_torch_nor_verl(self, python: Path, tmp_path: Path) -> None:
        code = (
            "import sys, tpru_verl, tpru_verl.cli, tpru_verl.doctor, tpru_verl.launch.plan\n"
            "import tpru_verl.launch.run\n"
            "print(*sorted({'torch', 'verl', 'vllm', 'transformers'} & set(sys.modules)))"
        )
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [str(python), "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_a_report_reads_what_its_own_loggers_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.3.2 logs to no file. What it prints of generations has the form of the head's `generations.log`."""
    from verl.utils.logger import gen_logger, logger  # pyright: ignore

    texts = {"<think>x\n\ny</think><answer>A</answer>": 1.0, "[output] none": 0.0}
    samples = [("Which?\nA. 1 2 B. 2 1", text, "A", score) for text, score in texts.items()]
    if "file" in logger.LOGGERS:
        config = {"trainer": {"save_checkpoint_path": str(tmp_path)}, "data": {"max_response_length": 64}}
        logger.LOGGERS["file"](config).log({"reward/overall": 0.5, "val/reward_score": 0.5}, 3)
        gen_logger.GEN_LOGGERS["file"](config).log(samples, 3)
        reader = HistoryReader(RunFiles.find(tmp_path))
        (step,) = reader.update().steps
        assert (step.number, step.get("reward")) == (3, 0.5)
        found = reader.validation[3]
    else:
        gen_logger.ConsoleGenerationLogger().log(samples, 3)
        path = tmp_path / "generations.log"
        path.write_text(capsys.readouterr().out)
        found = list(graded(read_rollouts(path)))
    assert [(answer.parsed, answer.reward) for answer in found] == [("A", 1.0), (None, 0.0)]
