"""Versions of veRL that load no plugins: what of ours works in them, and how the rest is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.responses import SCORES
from support.rows import write_prepared_row

from tpru_verl.launch import plan

MESSAGE = "verl: found veRL {}, which loads no plugins"


def for_transformers_4(checkpoint: Path, folder: Path) -> Path:
    """The tiny model as transformers 4 writes it down; transformers 5 reads it, too."""
    file = shutil.copytree(checkpoint, folder) / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["additional_special_tokens"] = config.pop("extra_special_tokens")
    file.write_text(json.dumps({**config, "tokenizer_class": "Qwen2TokenizerFast"}))
    return folder


def reads_prepared_rows(checkpoint: Path, folder: Path) -> None:
    """The prompt has each picture in its place, and what the reward is told is in the row."""
    from transformers import AutoTokenizer
    from verl.utils import hf_processor
    from verl.utils.dataset.rl_dataset import RLHFDataset

    model = for_transformers_4(checkpoint, folder / "model")
    config = {"max_prompt_length": 9000, "truncation": "error", "filter_overlong_prompts": True}
    config |= {"image_key": "images", "return_raw_chat": True, "cache_dir": str(folder)}
    config |= {"filter_overlong_prompts_workers": 1}
    processor: Any = hf_processor(str(model))
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = RLHFDataset(str(write_prepared_row(folder)), tokenizer, OmegaConf.create(config), processor)
    row = rows[0]
    (message,) = row["raw_prompt"]
    kinds = [part["type"] for part in message["content"]]
    assert kinds.count("image") == 3
    assert kinds[0] == "text"
    assert row["reward_model"]["ground_truth"]
    assert row["data_source"].startswith("tpru/")
    assert row["extra_info"]["task"]


def graded_by_path(key: str) -> None:
    """The version's own loader, with our function under the key that the version reads."""
    from verl.trainer.ppo.reward import get_custom_reward_fn

    named = {"path": "pkg://tpru_verl.reward_fns.verl", "name": "compute_score"}
    config = OmegaConf.create()
    OmegaConf.update(config, key, {**named, "reward_kwargs": {"preset": "tpru"}})
    score: Any = get_custom_reward_fn(config)
    for text, expected in SCORES.items():
        found = score(data_source="tpru/x", solution_str=text, ground_truth="B", extra_info={})
        assert found["score"] == expected


def is_refused(version: str) -> None:
    """By `tpru train`, and by what a recipe makes veRL import."""
    message = MESSAGE.format(version)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        plan.compose("tpru_7b")
    for module in ("dataset", "agent_loop"):
        with pytest.raises(ImportError, match=re.escape(message)):
            __import__(f"tpru_verl.plugin.{module}")


def is_refused_by_its_own_command(version: str, folder: Path) -> None:
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", "tpru_tiny_cpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"tpru: {MESSAGE.format(version)}")
