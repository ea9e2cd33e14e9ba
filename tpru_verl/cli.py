"""The `tpru` command. What a command needs is imported inside it, so that `tpru --version` is immediate."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from tpru_verl import __version__
from tpru_verl.build.commands import build
from tpru_verl.data.commands import app as data_app

app = typer.Typer(
    name="tpru",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Train vision-language models on temporal and procedural understanding with veRL.",
    epilog="Start here: `tpru demo`. Then: `tpru train tpru_7b data.train_files=train.parquet`",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


app.add_typer(data_app, name="data")
app.command(
    epilog="Examples: `tpru build videos rows --every 1` &nbsp; "
    "`tpru build sim:bricks rows --episodes 500 --split train=0.9,test=0.1`"
)(build)


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
    out: Annotated[Path, typer.Option(help="Folder for rows, checkpoints, log, summary and page.")] = Path(
        "outputs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the training run.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="GRPO steps.")] = 100,
    eval_rows: Annotated[int, typer.Option(min=3, help="Held-out rows, over the three tasks.")] = 1000,
) -> None:
    """Train a tiny model on a CPU with veRL's own trainer, and show what it learned.

    Makes rows of the three tasks, measures the model, trains it with GRPO (veRL, Ray, FSDP2, vLLM), measures
    it again, and writes OUT/summary.json and a page to look at.
    """
    from tpru_verl.demo.run import run

    run(out=out, seed=seed, steps=steps, eval_rows=eval_rows)


@app.command(
    epilog="Examples: `tpru train tpru_7b data.train_files=train.parquet data.val_files=test.parquet` &nbsp; "
    "`tpru train tpru_3b +tpru=paper trainer.n_gpus_per_node=4`"
)
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, such as tpru_7b.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes, in Hydra's syntax."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after printing the command.")] = False,
) -> None:
    """Check a recipe, print the exact command that trains it, and run that: veRL's own main_ppo.

    The command can be copied and run by hand. The exit code is veRL's.
    """
    from tpru_verl import recipes
    from tpru_verl.plugin import launch

    config = recipes.compose(recipe, overrides or [])
    environment = launch.environment(config)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", recipe, *(overrides or [])]
    variables = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    typer.echo(" ".join([*variables, shlex.join(command)]))
    if not dry_run:
        launch.check(config)
        raise typer.Exit(_run(command, {**os.environ, **environment}))


@app.command(epilog="Example: `tpru score outputs/rollouts --json scores.json`")
def score(
    rollouts: Annotated[
        Path,
        typer.Argument(help="veRL's rollout_data_dir or one jsonl of it, EasyR1's generations.log."),
    ],
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers there, too.")] = None,
) -> None:
    """Grade the rollouts of a past run with every preset: a table by task, and histograms.

    Shows what another preset would have paid, and how many groups would have taught nothing.
    """
    from tpru_verl import score as work
    from tpru_verl.data.files import write_json
    from tpru_verl.terminal import results

    tallies = work.score_rollouts(rollouts)
    console = results()
    for table in work.tables(tallies):
        console.print(table)
    if json_file is not None:
        write_json(json_file, work.summary(tallies))


def _run(command: list[str], environment: dict[str, str]) -> int:
    with subprocess.Popen(command, env=environment) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the process had the same Ctrl-C: let it end Ray and vLLM
            return process.wait()


def main() -> None:
    """Entry point: what a user can get wrong is a line, or one a finding, and exit code 1."""
    try:
        app()
    except (OSError, RuntimeError, ValueError) as error:
        lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
        sys.exit("tpru: " + "\n".join(lines or [type(error).__name__]))
