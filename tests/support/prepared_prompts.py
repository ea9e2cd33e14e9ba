"""What our data set, counter and agent loop make of a prompt with any version of transformers."""

from pathlib import Path
from typing import Any

from support.rollouts import Rollouts

from tpru_verl import recipes
from tpru_verl.demo.scenes import make_rows, write_parquet


def images_reach_the_update(checkpoint: Path, folder: Path) -> None:
    """Rows of each task: tokens as counted, a place in the prompt for each patch, pixels in the batch."""
    from transformers import AutoProcessor

    from tpru_verl.data.checks import judged_rows
    from tpru_verl.data.source.forms import Source
    from tpru_verl.data.tokens.prompts import Asked, PromptCounter
    from tpru_verl.plugin.agent_loop import TPRUAgentLoopWorker

    rows = 3
    write_parquet(make_rows(rows, seed=3), folder / "rows.parquet")
    files = [f"data.{name}_files={folder / 'rows.parquet'}" for name in ("train", "val")]
    config = recipes.compose("tpru_tiny_cpu", [*files, f"actor_rollout_ref.model.path={checkpoint}"])
    rollouts = Rollouts(config, TPRUAgentLoopWorker, rows)
    rollouts.run()

    processor: Any = AutoProcessor.from_pretrained(checkpoint)
    bounds = {name: config.data[name] for name in ("min_pixels", "max_pixels")}
    counter = PromptCounter(processor, config.data.prompt_template, bounds)
    judged = judged_rows(Source.open(str(folder / "rows.parquet")))
    counts = counter.count(Asked.of(row) for row, _ in judged)
    for i, count in enumerate(counts):
        row = rollouts.fields[f"row{i}_0_0"]
        shown = row["multi_modal_inputs"]
        patches = int(shown["image_grid_thw"].prod(-1).sum())
        assert len(shown["pixel_values"]) == patches > 0
        assert len(row["prompts"]) == count
        assert int((row["prompts"] == processor.image_token_id).sum()) == patches // 4
