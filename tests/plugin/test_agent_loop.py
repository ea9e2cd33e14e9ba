"""Our group rollout writes to TransferQueue what stock veRL's worker writes, field by field."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from omegaconf import OmegaConf

pytest.importorskip("verl")
pytest.importorskip("vllm")
from ray.exceptions import RayActorError, RayTaskError
from support.rollouts import FakeServer, Remote, Rollouts, same
from verl.workers.rollout.llm_server import FullyAsyncLLMServerClient
from verl.workers.rollout.replica import TokenOutput
from vllm.v1.engine.exceptions import EngineDeadError

from tpru_verl import recipes
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.plugin import hooks
from tpru_verl.plugin.agent_loop import (
    TPRUAgentLoopManager,
    TPRUAgentLoopWorker,
    _StockWorker,
)
from tpru_verl.plugin.dataset import TPRUDataset
from tpru_verl.plugin.processors import check_lists_of_ids, training_features
from tpru_verl.plugin.waiting import ERROR

N = 3


@pytest.fixture
def rollout(tmp_path: Path, checkpoint: Path) -> Callable[[type], Rollouts]:
    """Run a worker class on two prompts."""
    write_parquet(make_rows(2, seed=3), tmp_path / "rows.parquet")

    def run(worker_class: type, model: Path = checkpoint, *overrides: str, rows: int = 2) -> Rollouts:
        config = recipes.compose(
            "tpru_tiny_cpu",
            [
                f"data.train_files={tmp_path / 'rows.parquet'}",
                f"data.val_files={tmp_path / 'rows.parquet'}",
                f"actor_rollout_ref.model.path={model}",
                f"actor_rollout_ref.rollout.n={N}",
                *overrides,
            ],
        )
        rollouts = Rollouts(config, worker_class, rows)
        rollouts.run()
        return rollouts

    return run


def test_group_rollout_writes_what_stock_verl_writes(rollout: Callable) -> None:
    one, other = rollout(TPRUAgentLoopWorker), rollout(_StockWorker)
    ours, stock = one.fields, other.fields
    assert one.tags == other.tags
    assert ours.keys() == stock.keys()
    assert len(ours) == 2 * N
    # Timings differ, and stock veRL keeps the decoded pictures of every trajectory in `raw_prompt`.
    for key, row in stock.items():
        assert set(row) - set(ours[key]) <= {"mm_processor_kwargs", "mm_processor_output", "raw_prompt"}
        for name in row.keys() & ours[key].keys() - {"metrics", "raw_prompt"}:
            assert same(ours[key][name], row[name]), (key, name, ours[key][name], row[name])
    assert other.server.images == N * one.server.images


def test_prompts_that_start_together_share_the_write_of_their_tags(rollout: Callable) -> None:
    told = rollout(TPRUAgentLoopWorker).told
    assert told[0] == {"row0": "running", "row1": "running"}
    ended = {key: status for call in told[1:] for key, status in call.items()}
    assert ended == {"row0": "finished", "row1": "finished"}


def test_the_agent_loop_of_the_tested_verl_takes_all_that_ours_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from verl.experimental.agent_loop import AgentLoopManager

    monkeypatch.setattr(AgentLoopManager, "__init__", lambda self: None)
    manager: Any = TPRUAgentLoopManager()
    assert manager.agent_loop_workers_class.__ray_metadata__.class_name == "TPRUAgentLoopWorker"


def test_tokens_that_stand_for_images_are_never_sampled(rollout: Callable) -> None:
    server = rollout(TPRUAgentLoopWorker).server
    assert server.tokenizer.convert_ids_to_tokens(sorted(server.biased)) == ["<|image_pad|>", "<|video_pad|>"]


def test_each_image_is_processed_once_for_a_prompt(
    rollout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Qwen2_5_VLProcessor

    calls: list[int] = []
    process = Qwen2_5_VLProcessor.__call__

    def counted(self: Qwen2_5_VLProcessor, images: Any = None, **kwargs: Any) -> Any:
        calls.append(1 if images else 0)
        return process(self, images=images, **kwargs)

    monkeypatch.setattr(Qwen2_5_VLProcessor, "__call__", counted)
    rollout(TPRUAgentLoopWorker)
    ours = sum(calls)
    calls.clear()
    rollout(_StockWorker)
    # Both count the data set's own look at its two rows; a prompt costs us 1, stock veRL 3 a trajectory.
    assert sum(calls) - ours == 2 * (3 * N - 1)


def test_a_failed_prompt_is_marked_and_leaves_the_others_alone(
    rollout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: object, *_: object, **__: object) -> None:
        raise RuntimeError("no pictures today")

    monkeypatch.setattr(TPRUAgentLoopWorker, "_generate", fail)
    failed = rollout(TPRUAgentLoopWorker)
    assert failed.fields == {}
    assert {key: tag["status"] for key, tag in failed.tags.items()} == {"row0": "failure", "row1": "failure"}


def test_a_prompt_that_vllm_refuses_names_its_row_and_ends_the_run(
    rollout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def group(self: FakeServer) -> Remote:
        async def refuse(n: int, *, prompt_ids: list[int], **call: Any) -> list[TokenOutput]:
            if self.images:
                refusal = ValueError("At most 7 image(s) may be provided in one prompt.")
                raise RayTaskError("generate_group", f"long\n{refusal}", refusal).as_instanceof_cause()
            return await FakeServer._group(self, n, prompt_ids=prompt_ids, **call)

        return Remote(refuse)

    monkeypatch.setattr(FakeServer, "generate_group", property(group, lambda *_: None), raising=False)
    failed = rollout(TPRUAgentLoopWorker)
    assert len(failed.fields) == N  # of the prompt that came first
    (tag,) = (failed.tags[key] for key in ("row0", "row1") if failed.tags[key]["status"] == "failure")
    assert tag[ERROR].count("\n") == 0
    assert "rows.parquet row" in tag[ERROR]
    assert tag[ERROR].endswith("vLLM refuses the prompt (At most 7 image(s) may be provided in one prompt.)")


DEAD_ACTOR = "The actor died unexpectedly.\n\tclass_name: make.<locals>.RewardLoopWorker\n\tpid: 12\n"


@pytest.mark.parametrize(
    ("error", "died"),
    [
        (EngineDeadError(), "vLLM's engine has died"),
        (
            RayTaskError("generate_group", "long\ntraceback", EngineDeadError()).as_instanceof_cause(),
            "engine has",
        ),
        (RayActorError(error_msg=DEAD_ACTOR), "RewardLoopWorker (pid 12) has died"),
    ],
)
def test_an_engine_that_dies_ends_the_run(
    error: Exception, died: str, rollout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: object, *_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(TPRUAgentLoopWorker, "_generate", fail)
    tag = rollout(TPRUAgentLoopWorker).tags["row0"]
    assert died in tag[ERROR]
    assert "\n" not in tag[ERROR]


@pytest.mark.timeout(120)
def test_a_prompt_that_cannot_be_prepared_names_its_row_and_ends_the_run(
    rollout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor raises an error for a pad token without an image: IndexError in transformers 5.9, then
    StopIteration, for which Python 3.11 would wait on, and ValueError in 5.24."""
    from verl.trainer.ppo.v1 import replay_buffer

    read = TPRUDataset.__getitem__

    def with_a_pad_token(self: TPRUDataset, item: int) -> dict[str, Any]:
        row = read(self, item)
        if item == 1:
            row["raw_prompt"][0]["content"].append({"type": "text", "text": "<|image_pad|>"})
        return row

    monkeypatch.setattr(TPRUDataset, "__getitem__", with_a_pad_token)
    failed = rollout(TPRUAgentLoopWorker)
    assert len(failed.fields) == N  # of the other prompt
    assert failed.tags["row0"] == {"status": "finished"}
    tag = failed.tags["row1"]
    assert tag["status"] == "failure"
    assert "rows.parquet" in tag[ERROR]
    assert "the prompt cannot be prepared (" in tag[ERROR]

    buffer = replay_buffer.ReplayBuffer("sync", OmegaConf.create(), None, "drop", OmegaConf.create())
    tags = {key: {"is_prompt": True, "global_steps": 7, **failed.tags[key]} for key in ("row0", "row1")}
    monkeypatch.setattr("verl.trainer.ppo.v1.replay_buffer.tq.kv_list", lambda: {"train": tags})
    with pytest.raises(RuntimeError, match=r"rows\.parquet.*cannot be prepared \("):
        buffer.sample(7, "train", 2)


@pytest.fixture(scope="module")
def gemma(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A processor of Gemma 4, whose output has pixel values and no image_grid_thw."""
    names = ("image_token", "boi_token", "eoi_token", "audio_token", "boa_token", "eoa_token", "tool_token")
    tokens = ("<|image|>", "<|image>", "<image|>", "<|audio|>", "<|audio>", "<audio|>", "<|tool_response>")
    special = dict(zip(names, tokens, strict=True))
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, extra_special_tokens=special)
    template = (checkpoint / "chat_template.jinja").read_text()
    processor = transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(),
        transformers.Gemma4ImageProcessorPil(max_soft_tokens=70),
        tokenizer,
        transformers.Gemma4VideoProcessor(),
        chat_template=template.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image|>"),
    )
    folder = tmp_path_factory.mktemp("gemma")
    processor.save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "head_dim": 16}
    text = {**small, "num_hidden_layers": 2, "num_key_value_heads": 1, "global_head_dim": 16}
    text |= {"hidden_size_per_layer_input": 8, "layer_types": ["sliding_attention", "full_attention"]}
    text |= {"vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer)}
    text |= {"num_kv_shared_layers": 0, "pad_token_id": 0}
    vision = {**small, "num_hidden_layers": 1, "num_key_value_heads": 2, "position_embedding_size": 64}
    config = transformers.Gemma4Config(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        architectures=["Gemma4ForConditionalGeneration"],
    )
    config.save_pretrained(folder)
    return folder


def test_features_of_a_processor_without_grids_reach_the_update(rollout: Callable, gemma: Path) -> None:
    longer = ("data.max_prompt_length=900", "actor_rollout_ref.rollout.max_model_len=932")
    ours, stock = (rollout(kind, gemma, *longer).fields for kind in (TPRUAgentLoopWorker, _StockWorker))
    assert len(ours) == 2 * N
    for key, row in stock.items():
        assert len(ours[key]["multi_modal_inputs"]["pixel_values"]) > 1
        for name in ("input_ids", "position_ids", "multi_modal_inputs"):
            assert same(ours[key][name], row[name]), (key, name)


def test_the_update_sees_the_images_of_a_processor_without_grids(rollout: Callable, gemma: Path) -> None:
    """By what veRL's engines make of a batch, through a tiny Gemma 4: other pixels, other logits."""
    from verl.utils.model import extract_multi_modal_inputs

    longer = ("data.max_prompt_length=900", "actor_rollout_ref.rollout.max_model_len=932")
    row = rollout(TPRUAgentLoopWorker, gemma, *longer).fields["row0_0_0"]
    given: dict[str, Any] = extract_multi_modal_inputs([row["multi_modal_inputs"]])
    model = transformers.AutoModelForImageTextToText.from_config(
        transformers.AutoConfig.from_pretrained(gemma)
    )

    def logits(pixels: torch.Tensor) -> torch.Tensor:
        texts = {name: row[name].unsqueeze(0) for name in ("input_ids", "position_ids")}
        return model(**texts, **{**given, "pixel_values": pixels}).logits

    black = logits(torch.zeros_like(given["pixel_values"]))
    seen = logits(given["pixel_values"])
    assert not torch.allclose(seen, black, atol=1e-3)
    seen.sum().backward()
    gradients = [each.grad for name, each in model.named_parameters() if "vision_tower" in name]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_with_another_engine_each_sample_goes_stock_verls_way(rollout: Callable, checkpoint: Path) -> None:
    name = "actor_rollout_ref.rollout.name=sglang"
    ours, stock = (rollout(kind, checkpoint, name) for kind in (TPRUAgentLoopWorker, _StockWorker))
    assert ours.tags == stock.tags
    assert ours.fields.keys() == stock.fields.keys()
    for key, row in stock.fields.items():
        for name in ("input_ids", "position_ids", "multi_modal_inputs", "responses"):
            assert same(ours.fields[key][name], row[name]), (key, name)
    assert ours.server.biased == set()


def test_without_the_servers_call_for_a_group_each_sample_goes_stock_verls_way(
    rollout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "skipped", {"generate_group"})
    ours, stock = (rollout(kind) for kind in (TPRUAgentLoopWorker, _StockWorker))
    assert ours.tags == stock.tags
    assert len(ours.fields) == 2 * N
    assert ours.server.biased == set()


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_an_asynchronous_trainer_gets_whole_answers_and_no_aborted_ones(
    mode: str, rollout: Callable, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's server aborts each request at a weight update after 3 tokens; veRL's own client resumes it."""

    class Client(FullyAsyncLLMServerClient):
        def __init__(self, server: FakeServer) -> None:
            self.server: Any = server
            self.prompt: list[int] = []
            self.config = OmegaConf.create({"actor_rollout_ref": {"rollout": {"name": "vllm"}}})
            server.generate = Remote(self._served)  # type: ignore[attr-defined]
            server.generate_group = Remote(self._group)

        async def _acquire_server(self, request_id: str, **_: object) -> tuple[str, Any]:
            return "server", self.server

        def _release_server(self, *_: object, **__: object) -> None:
            pass

        async def _served(self, *, prompt_ids: list[int], **_: object) -> TokenOutput:
            self.prompt = self.prompt or prompt_ids
            whole = self.server.sample(self.prompt)
            done = len(prompt_ids) - len(self.prompt)
            end = done + 3 if done == 0 else len(whole.token_ids)
            return TokenOutput(
                token_ids=whole.token_ids[done:end],
                log_probs=whole.log_probs[done:end],
                stop_reason="completed" if done else "aborted",
                extra_fields={"global_steps": 8 if done else 7},
            )

        async def _group(self, n: int, **call: Any) -> list[TokenOutput]:
            return [await self._served(**call) for _ in range(n)]

    monkeypatch.setattr("support.rollouts.FakeClient", Client)
    ran = rollout(TPRUAgentLoopWorker, checkpoint, f"trainer.v1.trainer_mode={mode}", rows=1)
    assert len(ran.fields) == N
    for key, row in ran.fields.items():
        whole = ran.server.sample(row["prompts"].tolist()).token_ids
        assert row["responses"].tolist() == whole
        assert (ran.tags[key]["min_global_steps"], ran.tags[key]["max_global_steps"]) == (7, 8)


@pytest.mark.parametrize(("end", "form"), [("", 0.0), ("{{- '<think>\\n' -}}", 1.0)])
def test_the_reward_knows_whether_the_chat_template_opens_think(
    rollout: Callable,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    form: float,
) -> None:
    answers = ["The onion is cut last.</think><answer>A</answer>"] * 2
    monkeypatch.setattr("support.rollouts.ANSWERS", answers)
    model = shutil.copytree(checkpoint, tmp_path / "model")
    template = model / "chat_template.jinja"
    opened = template.read_text().rstrip().removesuffix("{%- endif -%}") + end + "{%- endif -%}"
    template.write_text(opened)
    rows = rollout(TPRUAgentLoopWorker, model).fields.values()
    assert {row["extra_info"]["opened_think"] for row in rows} == {bool(end)}
    forms = [row["extra_fields"]["reward_extra_info"]["format"] for row in rows]
    assert forms == [form] * 2 * N


def test_images_that_an_update_would_not_see_are_an_error() -> None:
    with pytest.raises(ValueError, match="found 2 images without image_grid_thw"):
        training_features({"pixel_values": torch.zeros(2, 3)}, images=2)
    assert training_features({"mm_token_type_ids": torch.zeros(1, 3)}, images=0) == {}


def test_a_reward_sees_the_fields_of_its_own_sample(
    rollout: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tpru_verl.reward_fns import verl

    seen: list[dict] = []
    monkeypatch.setattr(
        verl, "compute_score", lambda *_, extra_info, **__: seen.append(extra_info) or {"score": 0.0}
    )
    rollout(TPRUAgentLoopWorker)
    assert len({id(fields) for fields in seen}) == len(seen) == 2 * N


def test_a_prompt_that_lost_image_tokens_is_still_noticed(checkpoint: Path) -> None:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    check_lists_of_ids(processor)
    token, given = processor.image_token, torch.full((1, 3), processor.image_token_id)
    processor._check_special_mm_tokens([3 * token], {"input_ids": given}, modalities=["image"])
    with pytest.raises(ValueError, match="Mismatch in `image` token count"):
        processor._check_special_mm_tokens([2 * token], {"input_ids": given}, modalities=["image"])
