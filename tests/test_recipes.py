"""Every recipe composes and passes veRL's own checks and dataclasses."""

import re
import subprocess
import sys
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Template
from omegaconf import DictConfig, OmegaConf, open_dict
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils import omega_conf_to_dataclass
from verl.utils.config import validate_config
from verl.utils.import_utils import load_class_from_fqn, load_extern_object
from verl.workers.config import FSDPActorConfig, HFModelConfig, RolloutConfig

from tpru_verl import recipes
from tpru_verl.launch import overlays as launch
from tpru_verl.recipes import overlays

DATA = ["data.train_files=train.parquet", "data.val_files=test.parquet"]
BIG = [name for name in recipes.names() if name != "tpru_tiny_cpu"]
everyone = pytest.mark.parametrize("name", recipes.names())


@lru_cache
def _composed(name: str, *overrides: str) -> DictConfig:
    return recipes.compose(name, [*DATA, *overrides])


def composed(name: str, *overrides: str) -> DictConfig:
    """A copy to change; composing takes most of a second."""
    return deepcopy(_composed(name, *overrides))


def test_all_promised_recipes_are_there() -> None:
    assert recipes.names() == [
        *("tpru_32b", "tpru_3b", "tpru_7b", "tpru_qwen35_4b", "tpru_qwen35_9b"),
        *("tpru_qwen3vl_2b", "tpru_qwen3vl_32b", "tpru_qwen3vl_4b", "tpru_qwen3vl_8b", "tpru_tiny_cpu"),
    ]
    assert overlays.names() == [
        *("cispo", "dapo", "drgrpo", "gdpo", "gspo", "lora", "one_gpu_24", "one_gpu_48", "one_gpu_80"),
        *("paper", "reproducible", "sdpa", "tis"),
    ]


@everyone
@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_recipe_passes_verls_own_validation(name: str) -> None:
    config = composed(name)
    assert not need_critic(config)
    validate_config(config, need_reference_policy(config), use_critic=False)


@everyone
def test_recipe_fills_verls_dataclasses(name: str, checkpoint: Path) -> None:
    config = composed(name, f"actor_rollout_ref.model.path={checkpoint}")
    fills_dataclasses(config)
    assert config.actor_rollout_ref.rollout.limit_images == 7


def fills_dataclasses(config: DictConfig) -> None:
    """A key that these classes do not have is an error of theirs."""
    OmegaConf.resolve(config)
    parts = config.actor_rollout_ref
    with open_dict(parts.ref):  # what ActorRolloutRefWorker.init_model does before
        parts.ref.ppo_mini_batch_size = parts.actor.ppo_mini_batch_size
        parts.ref.ppo_micro_batch_size = parts.ref.pop("log_prob_micro_batch_size")
        parts.ref.ppo_micro_batch_size_per_gpu = parts.ref.pop("log_prob_micro_batch_size_per_gpu")
        parts.ref.use_dynamic_bsz = parts.ref.pop("log_prob_use_dynamic_bsz")
        parts.ref.ppo_max_token_len_per_gpu = parts.ref.pop("log_prob_max_token_len_per_gpu")
    for role in ("actor", "ref"):
        part = omega_conf_to_dataclass(parts[role])
        assert isinstance(part, FSDPActorConfig)
        assert part.strategy == part.fsdp_config.strategy == "fsdp2"
        assert part.fsdp_config.dtype == "bfloat16"
    rollout = omega_conf_to_dataclass(parts.rollout)
    assert isinstance(rollout, RolloutConfig)
    model = omega_conf_to_dataclass(parts.model)
    assert isinstance(model, HFModelConfig)
    assert model.processor is not None
    assert isinstance(omega_conf_to_dataclass(config.algorithm), AlgoConfig)


@everyone
def test_every_key_of_a_recipe_is_one_that_verl_or_we_read(name: str) -> None:
    """Hydra lets a recipe add any key; a misspelt one would be ignored in silence."""
    ours = {"problem_key", "answer_key", "prompt_template", "on_invalid", "min_pixels", "max_pixels"}
    config = composed(name)
    stock = OmegaConf.load(verl_defaults())
    assert isinstance(stock, DictConfig)
    assert set(config.data) - set(stock.data) == ours
    for section in ("algorithm", "trainer", "reward", "transfer_queue"):
        added = keys(config[section]) - keys(stock[section])
        assert added <= {
            "custom_reward_function.reward_kwargs",
            "custom_reward_function.reward_kwargs.preset",
        }
    added = keys(config.actor_rollout_ref) - keys(stock.actor_rollout_ref)
    assert added <= {
        "actor.optim.override_optimizer_config.fused",
        "model.override_config.attn_implementation",
        "rollout.agent.agent_loop_manager_class",
        "rollout.enable_sleep_mode",
        "rollout.engine_kwargs.vllm.distributed_executor_backend",  # vLLM's
        "rollout.limit_images",
    }


def verl_defaults() -> Path:
    import verl

    return Path(verl.__file__).parent / "trainer" / "config" / "_generated_ppo_trainer.yaml"


def keys(config: DictConfig, prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key in config:
        found.add(f"{prefix}{key}")
        child = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():
            found |= keys(child, f"{prefix}{key}.")
    return found


@everyone
def test_what_a_recipe_names_can_be_imported(name: str) -> None:
    config = composed(name)
    reward = config.reward.custom_reward_function
    assert callable(load_extern_object(reward.path, reward.name))
    assert isinstance(load_extern_object(config.data.custom_cls.path, config.data.custom_cls.name), type)
    assert load_class_from_fqn(config.actor_rollout_ref.rollout.agent.agent_loop_manager_class)


@everyone
def test_prompt_and_response_fit_in_the_engine(name: str) -> None:
    config = composed(name)
    longest = config.data.max_prompt_length + config.data.max_response_length
    rollout = config.actor_rollout_ref.rollout
    assert rollout.max_model_len >= longest
    assert rollout.max_num_batched_tokens >= rollout.max_model_len
    assert rollout.load_format == "auto"


@pytest.mark.parametrize("name", BIG)
def test_published_settings(name: str) -> None:
    config = composed(name)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.max_prompt_length, config.data.max_response_length) == (7000, 1024)
    assert (config.data.train_batch_size, actor.ppo_mini_batch_size) == (256, 128)
    assert (rollout.n, rollout.temperature, rollout.top_p) == (5, 1.0, 0.99)
    assert (rollout.val_kwargs.do_sample, rollout.val_kwargs.temperature) == (True, 0.5)
    assert (actor.optim.lr, actor.optim.weight_decay, actor.optim.clip_grad) == (1e-6, 1e-2, 1.0)
    assert (actor.use_kl_loss, actor.kl_loss_type, actor.kl_loss_coef) == (True, "low_var_kl", 0.01)
    assert not config.algorithm.use_kl_in_reward
    assert not actor.freeze_vision_tower
    trainer = config.trainer
    assert (trainer.total_epochs, trainer.test_freq, trainer.save_freq) == (2, 5, 35)
    assert trainer.max_actor_ckpt_to_keep == 3
    assert config.data.train_files != config.data.val_files


@pytest.mark.parametrize("overlay", overlays.names())
@pytest.mark.filterwarnings("ignore:Disabled critic")
def test_overlay_passes_verls_checks_and_fills_its_dataclasses(overlay: str, checkpoint: Path) -> None:
    config = composed("tpru_7b", f"+tpru={overlay}", f"actor_rollout_ref.model.path={checkpoint}")
    validate_config(config, need_reference_policy(config), use_critic=False)
    launch.check(config)
    fills_dataclasses(config)
    added = keys(config.reward) - keys(composed("tpru_7b").reward)
    length = {
        f"reward_kwargs.overlong_buffer_cfg.{key}" for key in ("enable", "len", "penalty_factor", "log")
    }
    dapo = {"reward_kwargs", "reward_kwargs.max_resp_len", "reward_kwargs.overlong_buffer_cfg", *length}
    assert added == (dapo if overlay == "dapo" else set())


def test_several_overlays_at_once() -> None:
    config = composed("tpru_qwen3vl_8b", "+tpru=[lora,dapo,tis,sdpa,one_gpu_24,paper]")
    parts = config.actor_rollout_ref
    assert (parts.model.lora_rank, parts.actor.optim.lr) == (64, 1e-5)
    assert config.algorithm.filter_groups.enable
    assert config.algorithm.rollout_correction.rollout_is == "token"
    assert not parts.model.use_remove_padding
    assert (config.trainer.n_gpus_per_node, parts.actor.ppo_micro_batch_size_per_gpu) == (1, 1)
    assert parts.actor.fsdp_config.offload_policy  # of one_gpu_48, which one_gpu_24 stands on
    assert config.data.prompt_template == "paper"
    assert config.data.image_patch_size == 16


def test_dapo_manager_of_verl_takes_the_length_off(checkpoint: Path) -> None:
    from transformers import AutoTokenizer
    from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager

    config = composed("tpru_7b", "+tpru=dapo")
    manager: Any = DAPORewardManager(config, AutoTokenizer.from_pretrained(checkpoint), None)
    assert (manager.max_resp_len, manager.overlong_buffer_cfg.len) == (1024, 256)


def test_published_batches_and_pixels_of_7b() -> None:
    config = composed("tpru_7b")
    assert (config.data.min_pixels, config.data.max_pixels) == (16384, 36864)
    assert config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu == 4
    assert config.actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu == 16
    assert config.actor_rollout_ref.rollout.tensor_model_parallel_size == 2


@pytest.mark.parametrize("name", [name for name in BIG if "qwen3" in name])
def test_other_families_see_as_many_tokens_as_qwen25vl(name: str) -> None:
    older, newer = composed("tpru_7b").data, composed(name).data
    for bound in ("min_pixels", "max_pixels"):
        assert round(older[bound] / 28**2) == newer[bound] / 32**2
        assert newer.mm_processor_kwargs[bound] == newer[bound]
    assert newer.image_patch_size == 16


# peft's `all-linear` with the overlay's regular expression, on the real classes of the families.
@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5"])
def test_lora_adapts_the_language_model_alone(model_type: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForImageTextToText

    lora = composed("tpru_7b", "+tpru=lora").actor_rollout_ref.model
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type))
        linear = {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
        settings = LoraConfig(
            r=lora.lora_rank,
            lora_alpha=lora.lora_alpha,
            target_modules=lora.target_modules,
            exclude_modules=lora.exclude_modules,
        )
        adapted = get_peft_model(model, settings).get_base_model()
    found = {name for name, part in adapted.named_modules() if hasattr(part, "lora_A")}
    assert found == {name for name in linear if ".visual." not in name and name != "lm_head"}
    assert any(".visual." in name for name in linear)
    assert any(name.endswith("o_proj") for name in found)


@everyone
def test_paper_overlay_changes_reward_and_prompt_alone(name: str) -> None:
    ours, paper = composed(name), composed(name, "+tpru=paper")
    assert paper.data.prompt_template == "paper"
    assert paper.reward.custom_reward_function.reward_kwargs == {"preset": "paper"}
    paper.data.prompt_template = ours.data.prompt_template
    paper.reward.custom_reward_function.reward_kwargs = {"preset": "tpru"}
    paper.trainer.experiment_name = ours.trainer.experiment_name
    assert paper == ours


def test_verls_own_command_finds_a_recipe_from_any_folder(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        "--config-name",
        "tpru_tiny_cpu",
        "--cfg",
        "job",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert OmegaConf.create(done.stdout).trainer.experiment_name == "tpru_tiny_cpu"


def test_verl_is_not_shadowed_inside_the_recipes_folder(root: Path) -> None:
    command = [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('verl').origin)"]
    done = subprocess.run(command, cwd=root / "recipes", capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) != root / "recipes" / "verl" / "__init__.py"
    assert done.stdout.strip().endswith("__init__.py")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("tpru_8b", DATA, "recipe: found 'tpru_8b', expected one of tpru_3b, tpru_7b"),
        ("tpru_tiny_cpu", [], "no value for data.train_files, data.val_files; add data.train_files="),
        ("tpru_7b", ["actor_rollout_ref.model.path=null"], "no value for actor_rollout_ref.model.path"),
        ("tpru_7b", ["data.trainfiles=x"], "found no key 'data.trainfiles', expected data.train_files"),
        ("tpru_7b", ["+tpru=papre"], "+tpru: found 'papre', expected one of cispo, dapo, drgrpo"),
        ("tpru_7b", ["+tpru=[lora,dappo]"], "sdpa, tis; meant dapo?"),
        (
            "tpru_7b",
            ["+tpru=lora", "+tpru=dapo"],
            "+tpru: found 2 times, expected one list: +tpru=[lora,dapo]",
        ),
        ("tpru_7b", ["+tpru=[gspo,cispo]"], "loss_mode=gspo in gspo and cispo in cispo"),
        (
            "tpru_7b",
            ["+tpru=[gspo,drgrpo]"],
            "loss_agg_mode=seq-mean-token-mean in gspo and seq-mean-token-sum",
        ),
        (
            "tpru_7b",
            ["+tpru=[one_gpu_24,one_gpu_48]"],
            "ppo_micro_batch_size_per_gpu=1 in one_gpu_24 and 2 in",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        recipes.compose(name, overrides)
    assert "\n" not in str(caught.value)


def test_the_command_line_settles_what_overlays_disagree_on() -> None:
    both = ["+tpru=[drgrpo,gspo]", "actor_rollout_ref.actor.loss_agg_mode=token-mean"]
    config = composed("tpru_7b", *both)
    assert config.actor_rollout_ref.actor.loss_agg_mode == "token-mean"
    assert config.actor_rollout_ref.actor.policy_loss.loss_mode == "gspo"


def test_easyr1_is_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "verl" / "trainer").mkdir(parents=True)
    for file in ("__init__.py", "trainer/__init__.py", "trainer/main.py"):
        (tmp_path / "verl" / file).touch()
    code = "from tpru_verl import recipes; recipes.compose('tpru_7b')"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "expected veRL 0.9: use recipes/easyr1 there" in done.stderr


@pytest.mark.parametrize("size", ["3b", "7b", "32b", "qwen3vl_4b"])
class TestEasyR1:
    def test_names_files_that_exist(self, size: str, root: Path) -> None:
        config = OmegaConf.load(recipes.EASYR1 / f"tpru_{size}.yaml")
        reward, function = config.worker.reward.reward_function.split(":")
        assert f"def {function}(" in (root / reward).read_text()
        template = (root / config.data.format_prompt).read_text()
        prompt = Template(template.strip()).render(content="<image> What is next?")
        assert prompt.count("<image>") == 1
        assert "<answer>" in prompt

    def test_trains_as_the_verl_recipe_does(self, size: str) -> None:
        easy, ours = OmegaConf.load(recipes.EASYR1 / f"tpru_{size}.yaml"), composed(f"tpru_{size}")
        actor, rollout = ours.actor_rollout_ref.actor, ours.actor_rollout_ref.rollout
        assert easy.worker.actor.model.model_path == ours.actor_rollout_ref.model.path
        assert easy.data.rollout_batch_size == ours.data.train_batch_size
        assert easy.worker.actor.global_batch_size == actor.ppo_mini_batch_size
        assert easy.worker.actor.clip_ratio_high == actor.clip_ratio_high
        assert easy.worker.rollout.n == rollout.n
        assert easy.worker.rollout.limit_images == rollout.limit_images
        assert easy.algorithm.kl_coef == actor.kl_loss_coef
        assert easy.trainer.total_epochs == ours.trainer.total_epochs


def test_easyr1_recipes_differ_in_the_model_alone() -> None:
    three, seven = (OmegaConf.load(recipes.EASYR1 / f"tpru_{size}.yaml") for size in ("3b", "7b"))
    three.worker.actor.model.model_path = seven.worker.actor.model.model_path
    three.trainer.experiment_name = seven.trainer.experiment_name
    assert three == seven


class TestQuotes:
    @pytest.mark.parametrize(
        "value",
        [
            "run/epoch=3",
            "新加卷2/m",
            "my model (1)",
            "run#3",
            "a,b",
            "it's",
            'say "x"',
            "x;y",
            "x{1}",
            "d:\\x,",
            'x\\"y',
            "trail ",
            " x/trail\t",
        ],
    )
    def test_a_path_reaches_the_recipe_as_it_was_written(self, value: str) -> None:
        key = "actor_rollout_ref.model.path"
        files = ["data.train_files=x", "data.val_files=x"]
        config = recipes.compose("tpru_7b", [*files, f"{key}=/data/{value}"])
        assert config.actor_rollout_ref.model.path == f"/data/{value}"

    def test_in_a_list_too(self) -> None:
        files = ["data.train_files=[/a/x=1.parquet, /b/y z.parquet,c.parquet]", "data.val_files=x"]
        config = recipes.compose("tpru_7b", files)
        assert list(config.data.train_files) == ["/a/x=1.parquet", "/b/y z.parquet", "c.parquet"]

    @pytest.mark.parametrize(
        "override",
        ["a.b=1", "+a=[x,y]", "~a", "a=null", "a='x=1'", "a={b:1}", "a=${c.d}", "a= 'x'", "a=1 ", "a= ${b}"],
    )
    def test_an_override_that_hydra_reads_stays(self, override: str) -> None:
        assert recipes.quoted(override) == override

    @pytest.mark.parametrize(
        ("given", "key"), [("data.train_files=/x/${oops}", "data.train_files"), ("+a={b: '${oops}'}", "a.b")]
    )
    def test_a_reference_to_nothing_is_named_in_one_line(self, given: str, key: str) -> None:
        files = ["data.train_files=x", "data.val_files=x", "actor_rollout_ref.model.path=x"]
        with pytest.raises(
            ValueError, match=rf"^{key}: Interpolation key 'oops' not found; .*\\\$\{{$"
        ) as told:
            recipes.compose("tpru_7b", [*files, given])
        assert "\n" not in str(told.value)
        config = recipes.compose("tpru_7b", [*files, r"data.train_files=/x/\${oops}"])
        assert config.data.train_files == "/x/${oops}"

    def test_what_is_no_override_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"found 'x\.parquet \(1\)', expected KEY=VALUE"):
            recipes.quoted("x.parquet (1)")
