"""The `tpru` command: what it prints, what it starts, and how it fails."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main
from support.rows import reordering, write_parquet
from typer.testing import CliRunner

import tpru_verl
from tpru_verl import cli, recipes
from tpru_verl.extras import install_command
from tpru_verl.launch import run as train
from tpru_verl.launch.plan import Plan

DATA = ["data.train_files=train.parquet", "data.val_files=test.parquet"]


def tpru(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str
) -> tuple[object, str, str]:
    """Exit code (or message), standard output and standard error of `tpru ARGS`."""
    monkeypatch.setattr(sys, "argv", ["tpru", *args])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capfd.readouterr()
    return caught.value.code, out, err


def test_version(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert tpru(capfd, monkeypatch, "--version") == (0, f"{tpru_verl.__version__}\n", "")


@pytest.mark.parametrize("command", ["demo", "train"])
def test_help_teaches_by_example(command: str) -> None:
    help_text = CliRunner().invoke(cli.app, [command, "--help"]).output
    assert f"tpru {command} " in help_text.split("Example", 1)[1]


def test_train_prints_the_command_with_the_cpu_environment(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = tpru(capfd, monkeypatch, "train", "tpru_tiny_cpu", *DATA, "--dry-run")
    assert code == 0
    assert "VERL_PLATFORM=cpu" in out
    assert f"{sys.executable} -m verl.trainer.main_ppo --config-name tpru_tiny_cpu " in out
    assert out.endswith(f" {' '.join(DATA)}\n")


def test_train_on_a_gpu_leaves_the_platform_to_verl(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = tpru(capfd, monkeypatch, "train", "tpru_7b", "+tpru=paper", "--dry-run")
    assert code == 0
    assert err.endswith("were not checked; tpru doctor --recipe tpru_7b +tpru=paper does that\n")
    assert "VERL_PLATFORM" not in out
    assert "--config-name tpru_7b " in out
    assert " trainer.experiment_name=tpru_7b_paper " in out
    assert out.endswith(" +tpru=paper\n")


def test_train_checks_then_runs_in_a_folder_and_hands_the_exit_code_over(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[tuple[Plan, Path, dict[str, Any]]] = []

    def run(plan: Plan, place: Path, **options: Any) -> int:
        started.append((plan, place, options))
        return 7

    monkeypatch.chdir(tmp_path)
    write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(16)])
    data = ["data.train_files=rows.parquet", "data.val_files=rows.parquet"]
    monkeypatch.setattr(train, "run", run)
    monkeypatch.setattr(train, "check", lambda plan: "fine")
    code, out, err = tpru(capfd, monkeypatch, "train", "tpru_tiny_cpu", *data, "--stall-timeout", "9")
    assert code == 7
    ((plan, place, options),) = started
    assert err == f"reward: fine\nfolder: {place}\n"
    assert plan.command[-len(data) :] == data
    assert plan.environment["VERL_PLATFORM"] == "cpu"
    assert out == f"{plan}\n"
    assert place.parent == tmp_path / "outputs"
    assert options["stall_timeout"] == 9
    assert "train" in options["commands"]


def test_train_names_what_is_missing_before_anything_starts(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, _ = tpru(capfd, monkeypatch, "train", "tpru_tiny_cpu", *DATA)
    assert code == "tpru: data.train_files=train.parquet: no such file or folder"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "tpru_8b"], "tpru: recipe: found 'tpru_8b', expected one of "),
        (["train", "tpru_tiny_cpu"], "tpru: tpru_tiny_cpu: no value for data.train_files"),
        (
            ["train", "tpru_7b", "data.trainfiles=x"],
            "tpru: tpru_7b: found no key 'data.trainfiles', expected data.train_files",
        ),
    ],
)
def test_a_mistake_is_one_line_and_a_bad_exit_code(
    args: list[str], message: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = tpru(capfd, monkeypatch, *args)
    assert isinstance(code, str)  # Python prints it to standard error and exits with 1
    assert code.startswith(message)
    assert "\n" not in code
    assert out == ""


def test_a_recipe_after_the_settings_is_asked_for_before_them(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, _ = tpru(capfd, monkeypatch, "train", DATA[0], "tpru_tiny_cpu", "+tpru=paper")
    assert str(code).startswith("tpru: recipe: found 'tpru_tiny_cpu' after 'data.train_files=train.parquet'")
    assert "tpru train tpru_tiny_cpu KEY=VALUE" in str(code)


@pytest.mark.parametrize("command", ["train", "doctor"])
def test_a_setting_in_the_form_of_an_option_is_shown_in_its_own(
    command: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = tpru(capfd, monkeypatch, command, "tpru_7b", "--lr", "1e-5")
    said = " ".join(err.replace("│", " ").split())
    assert code == 2
    assert "No such option: --lr. Settings are written KEY=VALUE, such as actor_rollout_ref.actor" in said
    assert "Possible" not in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["tpru_7b", "--stop-on", "bogus"], "tpru: --stop-on: found 'bogus', expected one of no-reward"),
        (["--resume", "nowhere"], "nowhere: found no run.json in it"),
        (["--resume", "nowhere", "--out", "run"], "tpru: found --out and --resume"),
    ],
)
def test_a_wrong_value_of_an_option_ends_as_an_unknown_option_does(
    given: list[str], said: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = tpru(capfd, monkeypatch, "train", *given)
    assert code == 2
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("trainer.total_trainig_steps=3", "trainer.total_training_steps"),
        ("train_files=x", "data.train_files"),
        ("actor_rollout_ref.rollout.tensor_model_parallel=2", "tensor_model_parallel_size"),
    ],
)
def test_a_key_that_is_not_there_names_its_neighbour(
    given: str, key: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, _ = tpru(capfd, monkeypatch, "train", "tpru_7b", given, "--dry-run")
    assert str(code).startswith(f"tpru: tpru_7b: found no key '{given.partition('=')[0]}', expected ")
    assert key in str(code)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("actor_rollout_ref.actor.optim.lr=fast", "a number"),
        ("data.train_batch_size=8k", "a number"),
        ("trainer.total_training_steps=many", "a number"),
        ("actor_rollout_ref.actor.use_kl_loss=maybe", "true or false"),
    ],
)
def test_text_in_the_place_of_a_number_is_refused(
    given: str, expected: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, _ = tpru(capfd, monkeypatch, "train", "tpru_tiny_cpu", *DATA, given, "--dry-run")
    assert code == f"tpru: {given}: found text, expected {expected}"
    fine = ["actor_rollout_ref.actor.optim.lr=1e-6", "data.train_batch_size=32", "trainer.val_only=true"]
    code, _, _ = tpru(capfd, monkeypatch, "train", "tpru_tiny_cpu", *DATA, *fine, "--dry-run")
    assert code == 0


def test_recipes_are_listed_with_a_line_each(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, listed, _ = tpru(capfd, monkeypatch, "recipes")
    assert code == 0
    assert all(f" {name} " in listed for name in recipes.names())
    assert "+tpru=paper" in listed
    assert re.search(r"tpru_3b +\S +tpru_7b with Qwen2.5-VL-3B", listed)
    code, out, _ = tpru(capfd, monkeypatch, "train")
    assert (str(code), out) == ("tpru: found no recipe, expected the name of one (`tpru recipes`)", listed)


def test_demo_hands_its_options_over(monkeypatch: pytest.MonkeyPatch) -> None:
    handed: dict[str, object] = {}
    run = ModuleType("tpru_verl.demo.run")
    run.__dict__.update(run=lambda **options: handed.update(options), device_here=lambda: "cuda")
    monkeypatch.setitem(sys.modules, "tpru_verl.demo.run", run)
    result = CliRunner().invoke(
        cli.app, ["demo", "--out", "x", "--seed", "3", "--steps", "5", "--eval-rows", "30"]
    )
    assert result.exit_code == 0
    assert handed == {"out": Path("x"), "seed": 3, "steps": 5, "eval_rows": 30, "device": "cuda"}


def test_a_missing_package_is_one_line_with_its_extra(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['psutil'] = None; sys.argv = ['tpru', 'demo']\n"
        "from tpru_verl.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("tpru: tpru demo "), done.stderr
    assert "psutil" in line
    assert "pip install" in line
    assert "[cpu]" in line


@pytest.mark.parametrize(
    ("command", "module", "extra"),
    [
        ("eval", "openai", "eval"),
        ("eval", "transformers.models", "cpu"),
        ("data", "sklearn", "build"),
        ("build", "av", "build"),
        ("train", "matplotlib", "cpu"),
    ],
)
def test_the_extra_is_that_of_the_command(
    command: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tpru", command])
    said = str(cli._named_extra(ModuleNotFoundError(f"No module named {module!r}", name=module)))
    assert install_command(extra) in said


def test_an_import_error_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tpru", "demo"])
    with pytest.raises(ImportError, match="cannot import name"):
        cli._named_extra(ImportError("cannot import name 'x'", name="tpru_verl.sample"))


def _commands(command: Any, path: str = "tpru") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{path} {name}")


@pytest.mark.parametrize(
    ("path", "command"), [*_commands(typer.main.get_command(cli.app))], ids=lambda value: str(value)[:30]
)
def test_a_help_shows_one_example_a_line(
    path: str, command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", [*path.split(), "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().out
    examples = said.partition("Example")[2] if "Example" in (command.epilog or "") else ""
    assert all(line.count("tpru ") <= 1 for line in examples.splitlines())
    assert examples.count("tpru ") == (command.epilog or "").partition("Example")[2].count("`tpru ")
