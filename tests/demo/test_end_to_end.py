"""veRL's real trainer on this machine's CPU: Ray, FSDP2 on two ranks, vLLM; checkpoint, resume, merge.

One run after another in one folder, because each starts from what the one before left: minutes in all.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytest.importorskip("verl")
from tpru_verl import recipes
from tpru_verl.launch import checks as launch

pytestmark = pytest.mark.e2e
CORRELATION = "training/rollout_actor_probs_pearson_corr"
# Mean difference of a sampled token's probability in vLLM and in the trainer: bfloat16's rounding.
FOLLOWS = 0.005
SMALL = [
    "data.train_batch_size=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.rollout.n=8",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "trainer.n_gpus_per_node=2",
    "ray_kwargs.ray_init.num_gpus=2",
    "trainer.val_before_train=false",
]


class Runs:
    """Starts veRL's module as a user would, in the folder that the first run makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *overrides: str) -> subprocess.Popen:
        files = [
            f"data.train_files={self.folder}/train.parquet",
            f"data.val_files={self.folder}/test.parquet",
        ]
        all_overrides = [*files, *SMALL, f"trainer.default_local_dir={self.folder}/checkpoints", *overrides]
        environment = launch.environment(recipes.compose("tpru_tiny_cpu", all_overrides))
        environment |= {"VERL_FILE_LOGGER_PATH": str(self.folder / "metrics.jsonl")}
        guarded = [sys.executable, "-m", "tpru_verl.launch.guard"]  # ends all when its input closes
        command = [*guarded, sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", "tpru_tiny_cpu"]
        with self.log.open("w") as log:
            return subprocess.Popen(
                [*command, *all_overrides],
                env={**os.environ, **environment},
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def steps(self) -> list[dict]:
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [line["data"] for line in lines if "timing_s/step" in line["data"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("end_to_end")
    yield Runs(folder / "runs")
    shutil.rmtree(folder, ignore_errors=True)


def test_the_smoke_script_trains_validates_and_leaves_a_checkpoint(runs: Runs, root: Path) -> None:
    command = [sys.executable, str(root / "benchmarks/gpu_smoke.py"), "--recipe", "tpru_tiny_cpu"]
    overrides = [
        *SMALL,
        "trainer.save_freq=1",
        "trainer.test_freq=2",
        # A step so large that vLLM could not agree with the trainer unless the new weights had reached it.
        "actor_rollout_ref.actor.optim.lr=3e-3",
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        f"trainer.rollout_data_dir={runs.folder}/rollouts",
    ]
    done = subprocess.run(
        [*command, "--steps", "2", "--out", str(runs.folder), *overrides],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    assert "timing_s/update_actor" in done.stdout  # its table
    steps = runs.steps()
    assert [step["training/global_step"] for step in steps] == [1, 2]
    assert min(step[CORRELATION] for step in steps) > 0.99
    assert max(step["training/rollout_probs_diff_mean"] for step in steps) < FOLLOWS
    # One token's probability after three layers in bfloat16, whose steps are 0.06 for a logit of 8 to 16.
    assert max(step["training/rollout_probs_diff_max"] for step in steps) < 0.2
    assert steps[0]["actor/grad_norm"] > 0  # the second step's answers may all be wrong alike
    validated = {key for key in steps[-1] if key.startswith("val-core/")}
    assert len(validated) == 3, validated  # one curve a task
    actor = runs.folder / "checkpoints/global_step_2/actor"
    assert len(list(actor.glob("model_world_size_2_rank_*.pt"))) == 2
    rollouts = [json.loads(line) for line in (runs.folder / "rollouts/1.jsonl").read_text().splitlines()]
    assert len(rollouts) == 4 * 8
    (runs.folder / "metrics.jsonl").unlink()  # the next run's own start there


def test_a_run_resumes_where_the_last_one_stopped_and_ends_when_a_worker_is_killed(runs: Runs) -> None:
    process = runs.start(
        "trainer.total_training_steps=50",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "actor_rollout_ref.actor.use_kl_loss=true",
    )
    try:
        wait_until(lambda: "step:3 -" in runs.log.read_text(), process)
        started = psutil.Process(process.pid).children(recursive=True)
        victims = [child for child in started if "TPRUAgentLoopWorker" in " ".join(child.cmdline())]
        assert victims, "no agent-loop worker among the processes"
        victims[0].send_signal(signal.SIGKILL)
        # Stock veRL polls for ever for the rollouts that the dead worker will not bring.
        assert process.wait(timeout=60) != 0
        assert "died" in runs.log.read_text()
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait(timeout=60)
    # Ray's own need a moment after their driver's end.
    _, left = psutil.wait_procs(started, timeout=30)
    assert all(process.status() == psutil.STATUS_ZOMBIE for process in left)
    first = runs.steps()[0]
    assert first["training/global_step"] == 3
    # The weights that vLLM samples from are the resumed ones, not those of the model path.
    assert first[CORRELATION] > 0.99


def test_merged_weights_load_in_transformers_and_are_trained_ones(runs: Runs, checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    merged = runs.folder / "model"
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    paths = ["--local_dir", f"{runs.folder}/checkpoints/global_step_2/actor", "--target_dir", str(merged)]
    done = subprocess.run([*command, *paths], timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    AutoProcessor.from_pretrained(merged)
    before, after = (
        AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        for folder in (checkpoint, merged)
    )
    assert after.state_dict().keys() == before.state_dict().keys()
    changed = (after.state_dict()[name] - value for name, value in before.state_dict().items())
    assert 0 < max(change.abs().max().item() for change in changed) < 0.1
    # Had vLLM kept the old weights, the first test's bound would have been far out of reach.
    moved = (answer_probabilities(before, checkpoint) - answer_probabilities(after, checkpoint)).abs()
    assert moved.mean() > 4 * FOLLOWS


def answer_probabilities(model, checkpoint: Path):
    """Probability of each token of the right answers of a few rows."""
    import torch
    from transformers import AutoProcessor

    from tpru_verl.demo.scenes import make_row
    from tpru_verl.demo.warm_start import embed, encode, prompt_text

    processor = AutoProcessor.from_pretrained(checkpoint)
    rows = [make_row(number, seed=5) for number in range(12)]
    answers = [f"<think>{thought}</think><answer>{thought[-1]}</answer><|im_end|>" for _, thought in rows]
    prompts = [prompt_text(processor, sample.problem) for sample, _ in rows]
    batch = encode(processor, prompts, answers, [image for sample, _ in rows for image in sample.images])
    with torch.inference_mode():
        embeddings, positions = embed(model, batch)
        mask = batch.attention_mask
        logits = model(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions).logits[:, :-1]
    labels = batch.labels[:, 1:]
    likely = logits.softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return likely[labels != -100]


def test_merged_weights_answer_in_vllm(runs: Runs) -> None:
    from tpru_verl.demo.evaluate import score
    from tpru_verl.eval.results import read_results

    answers = runs.folder / "answers.jsonl"
    command = [sys.executable, "-m", "tpru_verl.demo.evaluate", "--model", f"{runs.folder}/model"]
    command += ["--rows", f"{runs.folder}/test.parquet", "--out", str(answers)]
    environment = {name: value for name, value in os.environ.items() if name != "VERL_PLATFORM"}
    done = subprocess.run(command, env=environment, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = score(answers)
    assert found["pooled"]["n"] == 15
    assert len(found) == 4  # and one a task
    assert all(row["samples"][0]["response"] for row in read_results(answers))


def test_qwen3_vl_trains(root: Path, tmp_path: Path) -> None:
    """A tiny model of random weights, by the benchmark of all families."""
    command = [sys.executable, str(root / "benchmarks/families.py"), "--only", "qwen3_vl"]
    command += ["--keep", str(tmp_path)]
    done = subprocess.run(command, timeout=500, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "qwen3_vl/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["data"] for line in lines]
    assert [step["training/global_step"] for step in steps] == [1, 2], done.stdout
    assert min(step["actor/grad_norm"] for step in steps) > 0
    # With pictures of another row it would be 0.92.
    assert min(step[CORRELATION] for step in steps) > 0.99


def wait_until(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the trainer ended too early"
        assert time.monotonic() < deadline, "the trainer never got there"
        time.sleep(0.5)
