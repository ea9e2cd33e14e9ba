"""Checkpoints become models: found, joined, compared, and refused where they are not what was trained."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from support.checkpoints import ALPHA, RANK, write_checkpoint

from tpru_verl import cli
from tpru_verl.checkpoints import ADAPTED, checkpoints_of
from tpru_verl.runs import export, weights
from tpru_verl.runs.chat_template import keep_defaults
from tpru_verl.runs.logs import Step
from tpru_verl.runs.model_card import card, eval_command, serve_command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str | int | None:
    """`tpru export ARGUMENTS` in this process; what it exits with."""
    monkeypatch.setattr(sys, "argv", ["tpru", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def step_of(folder: Path, number: int, *, ranks: int = 1, shards: int | None = None) -> Path:
    """A checkpoint of a step whose shards hold nothing."""
    actor = folder / f"global_step_{number}/actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface/config.json").write_text("{}")
    for rank in range(ranks if shards is None else shards):
        ZipFile(actor / f"model_world_size_{ranks}_rank_{rank}.pt", "w").close()  # as torch's files are
    return actor


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--public"], "--public: found no --push ORG/NAME"),
        (["--push", "mine"], "--push: found 'mine', expected ORG/NAME"),
        (["--step", "5", "--best"], "found --step and --best"),
    ],
)
def test_options_that_cannot_be_meant(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    assert run(monkeypatch, tmp_path, tmp_path / "out", *options) == 2
    assert capsys.readouterr().err.startswith(f"tpru: {said}")


class TestWhichCheckpoint:
    def test_of_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="RUNX: no such folder, expected a run's"):
            export.chosen(tmp_path / "RUNX")
        with pytest.raises(ValueError, match="found no checkpoint"):
            export.chosen(tmp_path)

    def test_the_last_one_that_is_whole(self, tmp_path: Path) -> None:
        step_of(tmp_path, 5)
        step_of(tmp_path, 10)
        step_of(tmp_path, 100, ranks=2, shards=1)  # a save that was cut off
        assert export.chosen(tmp_path).step == 10

    def test_of_a_named_step(self, tmp_path: Path) -> None:
        for number in (5, 10):
            step_of(tmp_path, number)
        assert export.chosen(tmp_path, step=5).step == 5
        with pytest.raises(ValueError, match="found no checkpoint of step 7, expected one of 5, 10"):
            export.chosen(tmp_path, step=7)

    def test_the_best_by_validation(self, tmp_path: Path) -> None:
        for number in (5, 10, 15):
            step_of(tmp_path / "checkpoints", number)
        lines = [
            {"step": step, "data": {"val-core/a/acc/mean@1": a, "val-core/b/acc/mean@1": b}}
            for step, a, b in [(0, 0.9, 0.9), (5, 0.4, 0.6), (10, 0.7, 0.5), (15, float("nan"), 0.9)]
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert export.chosen(tmp_path, best=True).step == 10

    def test_no_validation_tells_no_best(self, tmp_path: Path) -> None:
        step_of(tmp_path, 5)
        with pytest.raises(ValueError, match="found no validation at the steps of the checkpoints"):
            export.chosen(tmp_path, best=True)

    @pytest.mark.parametrize(
        "place", ["", "global_step_5", "global_step_5/actor", "global_step_5/actor/huggingface"]
    )
    def test_named_by_any_of_its_folders(self, tmp_path: Path, place: str) -> None:
        step_of(tmp_path, 5)
        assert export.chosen(tmp_path / place).step == 5

    def test_one_that_was_cut_off_is_named(self, tmp_path: Path) -> None:
        actor = step_of(tmp_path, 5, ranks=4, shards=3)
        with pytest.raises(ValueError, match=rf"{actor}/model_world_size_4_rank_3.pt: missing or cut off"):
            export.chosen(tmp_path)

    def test_a_shard_without_its_end_is_no_shard(self, tmp_path: Path) -> None:
        step_of(tmp_path, 5)
        cut_off = step_of(tmp_path, 10) / "model_world_size_1_rank_0.pt"
        cut_off.write_bytes(b"PK\x03\x04 half of it")
        assert export.chosen(tmp_path).step == 5

    def test_shards_of_megatron_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "global_step_5/actor/dist_ckpt").mkdir(parents=True)
        with pytest.raises(ValueError, match=r"found shards of Megatron, expected those of FSDP"):
            export.chosen(tmp_path)

    def test_of_two_sizes_the_one_that_was_saved_last(self, tmp_path: Path) -> None:
        """A run on 4 GPUs may save into the folder of one on 8."""
        step_of(tmp_path, 5, ranks=4)
        (step_of(tmp_path, 6) / "fsdp_config.json").write_text("{}")
        actor = tmp_path / "global_step_5/actor"
        for rank in range(8):
            ZipFile(actor / f"model_world_size_8_rank_{rank}.pt", "w").close()
        with pytest.raises(ValueError, match="found shards of 4 and 8 ranks, expected one number"):
            export.chosen(actor)
        (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 4}))
        assert [found.ranks for found in checkpoints_of(tmp_path)] == [4, 1]
        (actor / "model_world_size_4_rank_3.pt").unlink()
        with pytest.raises(ValueError, match=r"model_world_size_4_rank_3\.pt: missing or cut off"):
            export.chosen(actor)

    def test_a_model_holds_no_checkpoint(self, checkpoint: Path) -> None:
        assert checkpoints_of(checkpoint) == []


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of processes with torch is done here, which imports torch once."""
    monkeypatch.setattr(export, "ask", lambda function, request, seconds: function(dict(request)))


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    write_checkpoint(folder / "global_step_3/actor", adapter=True)
    return folder


def test_shards_of_two_ranks_become_a_model_that_ends_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As EasyR1 leaves them: without fsdp_config.json, and with an end token that no turn has."""
    actor = tmp_path / "run/global_step_7/actor"
    write_checkpoint(actor, ranks=2)
    generation = actor / "huggingface/generation_config.json"
    stops = json.loads(generation.read_text())["eos_token_id"]
    generation.write_text(json.dumps({"eos_token_id": stops[1:]}))
    (tmp_path / "run/tpru_run.json").write_text(json.dumps({"model": "Qwen/Qwen2.5-VL-3B-Instruct"}))

    out = tmp_path / "out"
    assert not run(monkeypatch, tmp_path / "run", out, "--no-vllm")
    said = capsys.readouterr().out
    assert "transformers and the shards: log-probabilities of 32 tokens differ by 0.0000" in said
    assert f"python -m vllm.entrypoints.openai.api_server --model {out}" in said
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == stops
    assert not [path for path in out.rglob("*") if path.suffix in export.UNSAFE]
    mask = os.umask(0)
    os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o666 & ~mask}
    card = (out / "README.md").read_text()
    assert "base_model: Qwen/Qwen2.5-VL-3B-Instruct" in card
    assert str(tmp_path) not in card


@pytest.mark.usefixtures("in_process")
def test_an_adapter_is_merged_into_the_weights(adapted: Path, tmp_path: Path) -> None:
    made = export.export(adapted, export.chosen(adapted), tmp_path / "out", vllm=False, say=lambda line: None)
    assert not (tmp_path / "out/lora_adapter").exists()
    assert "transformers and the shards" in made.lines[0]


@pytest.mark.usefixtures("in_process")
def test_an_adapter_alone_names_its_layers(adapted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.export(adapted, export.chosen(adapted), out, adapter=True, vllm=False, say=lambda line: None)
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    assert config["target_modules"]
    assert all("language_model.layers" in name for name in config["target_modules"])
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.usefixtures("in_process")
def test_adapters_without_the_model_need_to_know_it(checkpoint: Path, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "global_step_3/actor", alone=True)
    chosen, out = export.chosen(tmp_path), tmp_path / "out"
    with pytest.raises(ValueError, match=r"found adapters alone \(save_lora_only\).* name it with --base"):
        export.export(tmp_path, chosen, out, vllm=False, say=lambda line: None)
    export.export(tmp_path, chosen, out, base=str(checkpoint), vllm=False, say=lambda line: None)
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/checkpoints/global_step_5"])
def test_a_run_that_began_with_an_adapter_of_another_scale_is_refused(tmp_path: Path, place: str) -> None:
    """rsLoRA scales by alpha / sqrt(r); beside the shards stand r and alpha alone."""
    actor = step_of(tmp_path / "run/checkpoints", 5)
    (actor / ADAPTED).write_text(json.dumps({"r": 16, "lora_alpha": 32}))
    (tmp_path / "start").mkdir()
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "use_rslora": True}
    (tmp_path / "start/adapter_config.json").write_text(json.dumps(config))
    recipe = {"actor_rollout_ref": {"model": {"lora_adapter_path": "start"}}}
    (tmp_path / "run/recipe.yaml").write_text(json.dumps(recipe))
    (tmp_path / "run/run.json").write_text(json.dumps({"folder": str(tmp_path)}))
    (tmp_path / "run/metrics.jsonl").touch()
    chosen = export.chosen(tmp_path / place)
    with pytest.raises(ValueError, match=r"lora_adapter_path=start, which has use_rslora=True, expected"):
        export.export(tmp_path / place, chosen, tmp_path / "out", vllm=False, say=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_shard_that_would_run_code_is_refused(tmp_path: Path) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> tuple:
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    actor = step_of(tmp_path, 5)
    torch.save({"weight": Evil()}, actor / "model_world_size_1_rank_0.pt")
    with pytest.raises(ValueError, match=r"found posix.system, expected tensors alone"):
        weights.join({"shards": str(actor), "base": "", "out": str(tmp_path / "out")})
    assert not (tmp_path / "ran").exists()


class TestOut:
    def test_a_folder_in_use_is_left_alone(self, tmp_path: Path) -> None:
        step_of(tmp_path / "run", 5)
        (tmp_path / "out").mkdir()
        (tmp_path / "out/mine").write_text("mine")
        with pytest.raises(FileExistsError, match="found other files, expected a new or empty folder"):
            export.export(
                tmp_path,
                export.chosen(tmp_path / "run"),
                tmp_path / "out",
                adapter=False,
                vllm=False,
                say=print,
            )

    @pytest.mark.parametrize("found", [[-1.0, -2.3], [-1.0, float("nan")]])
    def test_another_model_is_refused(self, found: list[float]) -> None:
        with pytest.raises(ValueError, match="this is not the model that was trained"):
            export._same("vLLM", found, "transformers", [-1.0, -2.0], export.ROUNDED)

    def test_a_disk_that_is_full_while_an_adapter_is_merged_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = step_of(tmp_path / "run", 5)
        (made / export.ADAPTED).write_text("{}")

        def ask(function: object, request: dict[str, str], seconds: float) -> None:
            out = Path(request["out"])
            (out / "lora_adapter").mkdir(parents=True)
            (out / "half.safetensors").write_bytes(b"0")
            if function is weights.fuse:
                raise RuntimeError("it ended its process: OSError: [Errno 28] No space left on device")

        monkeypatch.setattr(export, "ask", ask)
        monkeypatch.setattr(export, "_name_layers", lambda adapter, base: None)
        chosen = export.chosen(tmp_path / "run")
        with pytest.raises(RuntimeError, match="No space left"):
            export.export(tmp_path / "run", chosen, tmp_path / "out/mine", say=lambda line: None)
        assert not [path for path in tmp_path.rglob("*") if "mine" in path.name]

    @pytest.mark.usefixtures("in_process")
    def test_a_failed_export_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        step_of(tmp_path / "run", 5)  # its shard is no file of torch
        said = run(monkeypatch, tmp_path / "run", tmp_path / "out", "--no-vllm")
        assert isinstance(said, str)
        assert re.search(r"rank_0\.pt: found no whole file of torch .* earlier checkpoint with --step", said)
        assert len(said.splitlines()) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_verls_callback_exports_and_never_ends_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf
    from verl.trainer.ppo.checkpoint_callback import build_checkpoint_callback

    from tpru_verl.plugin import export_on_save

    name = f"{export_on_save.__name__}.ExportOnSave"
    callback = build_checkpoint_callback(OmegaConf.create({"trainer": {"checkpoint_callback_class": name}}))
    made = []
    monkeypatch.setattr(export_on_save, "export", lambda run, checkpoint, out, **more: made.append(out))
    for shards in (1, 0):  # a whole checkpoint, then one without shards
        folder = step_of(tmp_path, 5 + shards, shards=shards).parent
        callback.on_save(trainer=None, global_step=5, checkpoint_dir=str(folder), async_save=False)
    assert made == [tmp_path / "exported/global_step_6"]


def test_a_card_has_the_accuracy_of_each_task() -> None:
    """veRL's names of our data sources begin alike."""
    names = ["temporal_reordering", "next_frame_prediction"]
    data = {f"val-core/tpru/{name}/acc/mean@1": 0.25 * place for place, name in enumerate(names, 1)}
    said = card(
        "mine", base="", adapter=False, step=5, settings={}, versions={}, validation=Step(5, data), checks=[]
    )
    assert "| accuracy, temporal_reordering, step 5 | 25.0 % |" in said
    assert "| accuracy, next_frame_prediction, step 5 | 50.0 % |" in said


def test_a_card_takes_no_path_for_a_name_on_the_hub() -> None:
    data = {"train_files": ["data/train.parquet", "org/rows"]}
    said = card(
        "mine", base="org/model", adapter=False, step=5, settings={"data": data}, versions={},
        validation=None, checks=[],
    )  # fmt: skip
    assert "| training rows | train.parquet, org/rows |" in said
    assert "base_model: org/model" in said


class TestServeCommand:
    @pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
    def test_each_bound_counts_by_itself(self, name: str) -> None:
        data = {"min_pixels": None, "max_pixels": None, name: 48128}
        said = serve_command(Path("mine"), adapter=False, base="", settings={"data": data}, cpu=False)
        assert f"""--mm-processor-kwargs '{{"{name}": 48128}}'""" in said

    @pytest.mark.parametrize("rank", [1, 4, 24, 48, 64, 257, 512])
    def test_the_rank_is_one_that_vllm_takes_and_that_holds_the_adapter(
        self, tmp_path: Path, rank: int
    ) -> None:
        from verl.workers.rollout.vllm_rollout.utils import get_vllm_max_lora_rank

        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
        said = serve_command(tmp_path, adapter=True, base="org/model", settings={}, cpu=False)
        assert f"--max-lora-rank {get_vllm_max_lora_rank(rank)} " in said

    def test_an_adapter_is_served_with_the_arguments_of_its_chat_template(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8}))
        settings = {"data": {"apply_chat_template_kwargs": {"enable_thinking": False}}}
        said = serve_command(tmp_path, adapter=True, base="org/model", settings=settings, cpu=False)
        assert """--default-chat-template-kwargs '{"enable_thinking": false}'""" in said


class TestEvalCommand:
    def test_rows_prompt_pixels_and_length_are_those_of_the_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        data = {
            "val_files": ["rows@test", "org/rows"], "prompt_template": "bare", "min_pixels": 3136,
            "max_pixels": 3136, "max_response_length": 32, "problem_key": "problem", "prompt_key": "prompt",
            "answer_key": "truth", "image_key": "images",
        }  # fmt: skip
        more = "--style bare --answer-key truth --min-pixels 3136 --max-pixels 3136 --max-tokens 32"
        said = eval_command(Path("mine"), {"data": data}, tmp_path)
        assert said == f"tpru eval run mine --rows rows@test --rows org/rows {more}"
        said = eval_command(Path("mine"), {"data": data}, tmp_path / "run")
        assert said == f"tpru eval run mine --rows {tmp_path}/run/rows@test --rows org/rows {more}"

    def test_of_easyr1(self) -> None:
        data = {
            "val_files": "a b.parquet", "format_prompt": "/x/prompts/paper.jinja", "prompt_key": "question"
        }  # fmt: skip
        said = eval_command(Path("mine"), {"data": data}, None)
        assert said == "tpru eval run mine --rows 'a b.parquet' --style paper --problem-key question"

    def test_without_the_settings_of_the_run(self) -> None:
        assert eval_command(Path("mine"), {}, None) == "tpru eval run mine --rows FILE"


def test_a_chat_template_keeps_the_arguments_of_training_as_its_defaults(
    checkpoint: Path, tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    shutil.copytree(checkpoint, tmp_path / "model")
    template = tmp_path / "model/chat_template.jinja"
    template.write_text(
        template.read_text() + "{{- '<think>' if enable_thinking is not false else '</think>' }}"
    )
    chat = [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}]

    def said(**kwargs: object) -> str:
        processor = AutoProcessor.from_pretrained(tmp_path / "model")
        return processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **kwargs)

    asked = said(enable_thinking=False)
    assert asked != said()
    (line,) = keep_defaults(tmp_path / "model", {"enable_thinking": False, "tools": [{}]})
    assert '{"enable_thinking": false} unless a request says otherwise' in line
    assert said() == asked
    assert said(enable_thinking=True).endswith("<think>")
    assert keep_defaults(tmp_path / "model", {}) == []
    (tmp_path / "old").mkdir()
    old = tmp_path / "old/tokenizer_config.json"
    old.write_text(json.dumps({"chat_template": "x"}))
    keep_defaults(tmp_path / "old", {"name": "it's"})
    assert json.loads(old.read_text())["chat_template"].endswith("{%- endif %}x")
