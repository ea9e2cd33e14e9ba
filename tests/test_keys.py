"""No key of the environment reaches a file that we write."""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support.commands import Tpru
from support.endpoint import endpoint
from support.rows import reordering, write_parquet

from tpru_verl.launch import folder, plan, run, train
from tpru_verl.launch.settings import value_at
from tpru_verl.launch.watch import watch
from tpru_verl.redaction import keys_of_environment

NAMES = ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "VERL_API_KEY", "TPRU_TOKEN")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Values that nothing but the environment holds."""
    values = {name: f"sk-kept-to-itself-{i}" for i, name in enumerate(NAMES)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return list(values.values())


def with_keys(folder: Path, keys: list[str]) -> list[str]:
    """The files of a folder that hold one of the keys."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if any(key.encode() in path.read_bytes() for key in keys)]


def test_the_keys_of_an_environment_are_known(keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("A_KEY", "true")
    found = set(keys_of_environment())
    assert found >= set(keys)
    assert not found & {"true", "false"}


def test_the_folder_of_a_run_has_no_key(
    keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VERL_LOGGING_LEVEL", "INFO")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr(run, "run", lambda *_, **__: 1)
    monkeypatch.setattr(run, "check", lambda plan: plan.check() or "fine")
    write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(32)])
    # A reward that asks a server: its key is named, and Hydra puts its value in when the recipe is composed.
    named = "+reward.custom_reward_function.reward_kwargs.api_key=${oc.env:OPENAI_API_KEY}"
    rows: list[Any] = ["data.train_files=rows.parquet", "data.val_files=rows.parquet"]
    place = tmp_path / "run"
    train.train("tpru_tiny_cpu", [*rows, named], out=place)
    assert with_keys(place, keys) == []
    assert "api_key: '***'" in (place / "recipe.yaml").read_text()
    assert "${oc.env:OPENAI_API_KEY}" in (place / "command.sh").read_text()
    assert "export VERL_LOGGING_LEVEL=INFO" in (place / "command.sh").read_text()
    assert json.loads((place / "run.json").read_text())["overrides"] == [*rows, named]
    # Continued with another key: what differs is told without it.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-kept-to-itself-too")
    train.train("", ["trainer.total_epochs=4"], resume=place)
    assert with_keys(place, [*keys, "sk-kept-to-itself-too"]) == []
    said = "".join(capfd.readouterr())
    assert "trainer.total_epochs" in said
    assert not any(key in said for key in [*keys, "sk-kept-to-itself-too"])


TYPED = "sk-typed-on-the-command-line"


def test_a_key_that_was_typed_stays_in_no_file_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    commands: list[Any] = []
    monkeypatch.setattr(run, "run", lambda planned, *_, **__: commands.append(planned) or 1)
    monkeypatch.setattr(run, "check", lambda planned: planned.check() or "fine")
    write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(32)])
    kwargs = "+reward.custom_reward_function.reward_kwargs"
    rows = ["data.train_files=rows.parquet", "data.val_files=rows.parquet", "data.image_key=images"]
    typed = f"{kwargs}={{api_key: {TYPED}, url: 'http://me:{TYPED}@host/v1'}}"
    others = [f"+trainer.{name}={TYPED}{name}" for name in ("key", "token", "hf_token")]
    place = tmp_path / "run"
    train.train("tpru_tiny_cpu", [*rows, typed, *others], out=place)
    assert TYPED in " ".join(commands[0].command)  # the trainer gets them
    assert with_keys(place, [TYPED]) == []
    assert TYPED not in "".join(capfd.readouterr())
    kept = json.loads((place / "run.json").read_text())["overrides"]
    assert kept[:3] == rows
    assert kept[4:] == [f"+trainer.{name}=***" for name in ("key", "token", "hf_token")]
    assert "in the places of ***" in (place / "command.sh").read_text()
    for name in ("run.json", "recipe.yaml", "command.sh"):
        assert (place / name).stat().st_mode & 0o077 == 0, name
    # A continued run needs them again, or a variable.
    with pytest.raises(ValueError, match=r"because a key is not kept; give it again, or the variable"):
        train.train("", [], resume=place)
    monkeypatch.setenv("MY_KEY", TYPED)
    again = [f"+trainer.{name}=${{oc.env:MY_KEY}}" for name in ("key", "token", "hf_token")]
    train.train("", [f"{kwargs}={{api_key: {TYPED}}}", *again], resume=place)
    assert TYPED in " ".join(commands[1].command)
    assert with_keys(place, [TYPED]) == []


def test_the_log_of_a_run_has_no_key(
    keys: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also one that is written in two parts."""
    said = f"import sys, time; w = sys.stdout.write; w('a {keys[0]} b {keys[1][:5]}'); sys.stdout.flush(); "
    said += f"time.sleep(0.3); w('{keys[1][5:]}' + chr(10) + 'the end')"
    said += f"; w(' {TYPED}')"
    end = watch([sys.executable, "-c", said], {}, tmp_path / "log", echo=True, secrets=[TYPED])
    assert end.code == 0
    assert (tmp_path / "log").read_text() == capfd.readouterr().out == "a *** b ***\nthe end ***"


def test_keys_of_any_type_stay_out_of_folder_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number, a short password, one in a URL: veRL prints its whole configuration."""
    monkeypatch.chdir(tmp_path)
    typed = {"api_key": "123456789012", "password": "hunter2", "url": "'https://u:p4ssw0rdX@h/v1'"}
    typed |= {"db_pwd": "SuperSecret99", "access_tokens": "[tok1234567]", "max_tokens": "512"}
    kwargs = "reward.custom_reward_function.reward_kwargs"
    given = ["data.train_files=a/b", "data.val_files=a/b", *(f"+{kwargs}.{k}={v}" for k, v in typed.items())]
    planned = plan.compose("tpru_tiny_cpu", given, tmp_path / "run")
    folder.begin(tmp_path / "run", planned, "tpru_tiny_cpu", given, None)
    printed = value_at(planned.settings.config, kwargs)
    told = [sys.executable, "-c", "import sys; print(sys.argv[1], sys.argv[2])", str(printed)]
    watch([*told, "p4ssw0rdX"], {}, tmp_path / "run/log", echo=False, secrets=planned.secrets)
    secrets = ["123456789012", "hunter2", "p4ssw0rdX", "SuperSecret99", "tok1234567"]
    assert with_keys(tmp_path / "run", secrets) == []
    assert not any(secret in str(planned) for secret in secrets)
    assert "max_tokens: 512" in (tmp_path / "run/recipe.yaml").read_text()
    assert "'max_tokens': 512" in (tmp_path / "run/log").read_text()


def test_parameters_of_a_url_leave_paths_and_numbers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "http://judge:8000/score?author=tpru&max_tokens=1024&key=training"
    given = ["data.train_files=training/tpru", "data.val_files=a/b"]
    given += [f"+reward.custom_reward_function.reward_kwargs.url='{url}'"]
    planned = plan.compose("tpru_tiny_cpu", given, tmp_path / "run")
    folder.begin(tmp_path / "run", planned, "tpru_tiny_cpu", given, None)
    recipe = (tmp_path / "run/recipe.yaml").read_text()
    assert "training/tpru" in recipe
    assert url.replace("training", "***") in recipe
    assert "training/tpru" in (tmp_path / "run/command.sh").read_text()
    assert not {"tpru", "1024"} & set(planned.secrets)


def test_an_evaluation_and_its_page_have_no_key(keys: list[str], tpru_eval: Tpru, tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(3)])
    with endpoint() as server:
        asked = ("tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / "out")
        code, out, err = tpru_eval(*asked)
    assert code == 0, err
    assert server.asked
    assert with_keys(tmp_path / "out", keys) == []
    assert not any(key in out + err for key in keys)
    (replies,) = (tmp_path / "out").rglob("responses.jsonl")
    assert replies.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "query", ["?api-version=2024", "?pwd=PASSWORD9", "?sig=PASSWORD9&x=1", "?code=PASSWORD9"]
)
def test_a_password_of_the_address_is_in_no_result(
    query: str, tpru_eval: Tpru, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(3)])
    with endpoint() as server:
        url = server.url.replace("http://", "http://user:PASSWORD9@") + query
        asked = ["tiny", "--base-url", url, "--rows", str(source), "--out", str(tmp_path / "out")]
        monkeypatch.setattr("sys.argv", ["tpru", "eval", *asked])
        code, out, err = tpru_eval(*asked)
    assert code == 0, err
    assert "--base-url" in (tmp_path / "out/summary.json").read_text()
    assert with_keys(tmp_path / "out", ["PASSWORD9"]) == []
    assert "PASSWORD9" not in out + err


class Redirect(BaseHTTPRequestHandler):
    """Sends all requests, with what is in them, to `target`."""

    target = ""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(307)
        self.send_header("Location", f"{self.target}{self.path.removeprefix('/v1')}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_cannot_send_rows_and_keys_to_another(
    keys: list[str], tpru_eval: Tpru, tmp_path: Path
) -> None:
    source = write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(3)])
    with endpoint() as other:
        Redirect.target = other.url
        with ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/v1"
            code, _, err = tpru_eval("tiny", "--base-url", url, "--rows", source, "--out", tmp_path / "out")
            server.shutdown()
    assert other.tried == 0
    assert code
    assert "307" in f"{code}{err}"
