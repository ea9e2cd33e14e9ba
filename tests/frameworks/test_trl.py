"""TRL's own trainer, with our reward."""

import functools
from pathlib import Path
from typing import Any

import pytest
from support.responses import SCORES
from support.rows import write_prepared_row

from tpru_verl.data.prepare import PrepareOptions, prepare
from tpru_verl.data.source.forms import Source
from tpru_verl.demo.run import CHECKPOINT
from tpru_verl.demo.scenes import make_rows, write_parquet
from tpru_verl.reward_fns import trl


def test_prepared_rows_keep_their_pictures_in_place(tmp_path: Path) -> None:
    """In rows for veRL, TRL puts all pictures first."""
    from datasets import load_dataset
    from trl.data_utils import prepare_multimodal_messages  # pyright: ignore

    shard = write_prepared_row(tmp_path / "verl")
    raw = load_dataset("parquet", data_files=str(shard), split="train")[0]
    stock = prepare_multimodal_messages(raw["prompt"], images=raw["images"])[0]["content"]
    assert [part["type"] for part in stock] == ["image"] * 3 + ["text"]
    assert stock[-1]["text"].count("<image>") == 3

    write_prepared_row(tmp_path / "trl", "trl")
    row: dict[str, Any] = load_dataset(str(tmp_path / "trl" / "OUT"), split="train")[0]
    (message,) = prepare_multimodal_messages(row["prompt"], images=row["images"])
    shown = [p["text"] if p["type"] == "text" else p["image"].getpixel((0, 0))[0] for p in message["content"]]
    assert shown[:6] == ["Reorder. Frame 1:", 10, " Frame 2:", 20, " Frame 3:", 30]
    assert shown[6].startswith(" A. 1 2 3 B. 3 1 2")
    text = "<think>x</think><answer>B</answer>"
    columns: dict[str, Any] = {name: [row[name]] for name in row if name != "prompt"}
    assert trl.tpru_reward([text], prompts=[row["prompt"]], **columns) == [1.0]


def test_rows_that_were_prepared_again_are_loaded_again(tmp_path: Path) -> None:
    """`load_dataset` of a folder would give those of the result before."""
    from datasets import load_dataset

    texts: list[str] = []
    for seed in (1, 2):
        (row, *_) = make_rows(4, seed=seed)
        write_parquet([row], tmp_path / "rows.parquet")
        source = Source.open(str(tmp_path / "rows.parquet"))
        prepare(source, tmp_path / "OUT", PrepareOptions(framework="trl"), workers=1)
        rows: Any = load_dataset(str(tmp_path / "OUT"), split="train", cache_dir=str(tmp_path / "cache"))
        (read,) = rows
        texts.append(read["problem"])
        assert read["problem"] == row.problem
    assert len(set(texts)) == 2


def test_the_documented_lines_train_on_rows_with_pictures(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo's model on two of its rows; a reward that was earned changes the model."""
    from transformers import set_seed

    set_seed(0)
    write_parquet(make_rows(4, seed=1), tmp_path / "rows.parquet")
    source = Source.open(str(tmp_path / "rows.parquet"))
    prepare(source, tmp_path / "OUT", PrepareOptions(template="bare", framework="trl"), workers=1)
    code = (root / "docs/rewards.md").read_text().partition("**TRL** (")[2]
    code = code.partition("```python\n")[2].partition("```")[0]
    for told, tried in {
        "Qwen/Qwen2.5-VL-3B-Instruct": str(CHECKPOINT),
        "max_completion_length=1024": "max_completion_length=48, max_steps=2, learning_rate=0.01, "
        "use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy='no', "
        "report_to='none'",
    }.items():
        assert told in code
        code = code.replace(told, tried)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code.replace("trainer.train()", "before = next(trainer.model.parameters()).detach().clone()"), names)
    trainer = names["trainer"]
    trainer.train()
    rewards = [e["rewards/tpru_reward/mean"] for e in trainer.state.log_history if "reward" in e]
    assert len(rewards) == 2
    assert max(rewards) > 0
    assert not next(trainer.model.parameters()).equal(names["before"])


@pytest.mark.parametrize("conversational", [False, True])
def test_trains_two_steps(conversational: bool, tmp_path: Path) -> None:
    """A random model whose vocabulary is a few whole answers; the logged rewards are those earned."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore

    vocabulary = {text: i for i, text in enumerate(["<pad>", "<eos>", "Which?", *SCORES])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<pad>")),
        pad_token="<pad>",
        eos_token="<eos>",
        chat_template="{% for message in messages %}{{ message.content }}{% endfor %}",
    )
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    earned: list[float] = []

    def spy(completions: list[Any], answer: list[str], **_: object) -> list[float | None]:
        texts = [c[0]["content"] if conversational else c for c in completions]
        assert set(answer) == {"B"}
        earned.extend(SCORES.get(text, 0.0) for text in texts)
        return [None] * len(texts)

    prompt: Any = [{"role": "user", "content": "Which?"}] if conversational else "Which?"
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[functools.partial(trl.tpru_reward, preset="tpru"), spy],
        train_dataset=Dataset.from_list([{"prompt": prompt, "answer": "B"}] * 8),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=8,
            num_generations=8,
            max_completion_length=1,
            max_steps=2,
            learning_rate=0.1,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "rewards/tpru_reward/mean" in entry]
    means = [sum(earned[i : i + 8]) / 8 for i in (0, 8)]
    assert [entry["rewards/tpru_reward/mean"] for entry in logs] == means
    assert max(means) > 0
    assert all(0 <= entry["tpru/accuracy"] <= 1 for entry in logs)
    assert any(not value.equal(before[name]) for name, value in model.state_dict().items())
