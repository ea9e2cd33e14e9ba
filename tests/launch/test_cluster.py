"""The scripts of `tpru train --launch`: what a shell, Slurm and Kubernetes make of them."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tpru_verl import cli
from tpru_verl.launch import checks, cluster, needs, plan
from tpru_verl.launch.settings import Settings

ODD = ['data.train_files=/my rows/$HOME/it\'s "here".parquet', "data.val_files=`id`;{{ x }}\\n#"]


@pytest.fixture(autouse=True)
def composed(monkeypatch: pytest.MonkeyPatch) -> dict:
    """A recipe as composed, without Hydra's seconds: what a script reads of it, which a test may change."""
    config: dict = {
        "trainer": {"nnodes": 1, "n_gpus_per_node": 8, "device": "cuda"},
        "ray_kwargs": {"ray_init": {"num_cpus": 96}},
        "data": {"train_batch_size": 1024},
        "actor_rollout_ref": {
            "actor": {"ppo_mini_batch_size": 1024, "use_dynamic_bsz": True},
            "rollout": {"n": 1},
        },
    }

    def compose(recipe: str, overrides: object = ()) -> SimpleNamespace:
        return SimpleNamespace(settings=Settings("veRL", config))

    monkeypatch.setattr(plan, "compose", compose)
    return config


def of_cpu(config: dict, nodes: int) -> None:
    config["trainer"] = {"nnodes": nodes, "n_gpus_per_node": 1, "device": "cpu"}
    config["ray_kwargs"]["ray_init"] = {"address": "local", "num_cpus": 32, "num_gpus": 1}


def run(text: str, folder: Path) -> list[str]:
    """The words that `tpru` is called with when a shell runs the script."""
    tpru = folder / "bin/tpru"
    tpru.parent.mkdir(exist_ok=True)
    tpru.write_text('#!/bin/bash\nprintf "%s\\0" "$@" >"$0.words"\n')
    tpru.chmod(0o755)
    script = text.replace(
        f"export PATH={cluster.sys.executable.rpartition('/')[0]}:", f"export PATH={tpru.parent}:"
    )
    done = subprocess.run(
        ["bash", "-c", script], env={"PATH": f"{tpru.parent}:/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return (folder / "bin/tpru.words").read_text().split("\0")[:-1]


def test_slurm_starts_the_run_then_continues_it(tmp_path: Path) -> None:
    place = tmp_path / "my $run's"
    text = cluster.script("slurm", "tpru_7b", ODD, out=place, options=["--stop-on=nan"])
    assert run(text, tmp_path) == ["train", "tpru_7b", *ODD, "--out", str(place), "--stop-on=nan"]
    place.mkdir()
    (place / "run.json").touch()
    assert run(text, tmp_path) == ["train", "--resume", str(place), "--stop-on=nan"]


def test_slurm_asks_for_what_the_recipe_needs(tmp_path: Path, composed: dict) -> None:
    text = cluster.script("slurm", "tpru_7b", [], out=tmp_path / "run", grace=300, values=["time=4:00:00"])
    for line in (
        "--nodes=1",
        "--gpus-per-node=8",
        "--cpus-per-task=96",
        "--time=4:00:00",
        "--signal=B:USR1@360",
    ):
        assert f"#SBATCH {line}\n" in text
    assert "symmetric-run" not in text
    assert "--exclusive" not in text
    composed["trainer"]["nnodes"] = 4
    text = cluster.script("slurm", "tpru_7b", [], out=tmp_path / "run")
    assert "#SBATCH --nodes=4\n" in text
    assert "#SBATCH --exclusive\n" in text
    assert "--min-nodes 4 " in text
    of_cpu(composed, nodes=2)
    text = cluster.script("slurm", "tpru_tiny_cpu", [], out=tmp_path / "run")
    assert "gpus-per-node" not in text
    assert "export VERL_PLATFORM=cpu\n" in text  # Ray's workers inherit it of the node


def test_every_node_takes_the_options_for_ray(
    tmp_path: Path, composed: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ray symmetric-run` hands its options to `ray start` on the first node and on the others, too."""
    scripts = pytest.importorskip("ray.scripts.scripts")
    composed["trainer"]["nnodes"] = 2
    text = cluster.script("slurm", "tpru_7b", [], out=tmp_path / "run").replace("\\\n", " ")
    (command,) = re.findall(r"ray symmetric-run (.*?) -- ", text)
    words = shlex.split(command.replace("$SLURM_CPUS_PER_TASK", "8").replace("$address", "127.0.0.1:6379"))
    words = words[: words.index("--min-nodes")] + words[words.index("--min-nodes") + 2 :]
    assert words == ["--address", "127.0.0.1:6379", "--num-cpus=8", "--num-gpus=8"]
    monkeypatch.setattr(scripts.services, "canonicalize_bootstrap_address", lambda *args, **options: None)
    done = CliRunner().invoke(scripts.start, words)
    assert "Cannot canonicalize address" in done.output  # it would join the first node now
    done = CliRunner().invoke(scripts.start, [*words, "--include-dashboard=false"])
    assert "only be specified when starting head node" in done.output


@pytest.mark.parametrize("nodes", [1, 2])
def test_shells_read_the_scripts(tmp_path: Path, composed: dict, nodes: int) -> None:
    composed["trainer"]["nnodes"] = nodes
    texts = [cluster.script("slurm", "tpru_7b", ODD, out=tmp_path / "a b")]
    for document in yaml.safe_load_all(cluster.script("ray-job", "tpru_7b", ODD)):
        texts += [document["data"]["train.sh"]] if document["kind"] == "ConfigMap" else []
    texts.append(yaml.safe_load(cluster.script("skypilot", "tpru_7b", ODD))["run"])
    assert len(texts) == 3
    for text in texts:
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        if shutil.which("shellcheck"):
            options = ["--shell=bash", "--exclude=SC2016,SC2317"]  # a $ that is meant; called by a trap
            subprocess.run(["shellcheck", *options, "-"], input=text, text=True, check=True)


def test_a_ray_job_has_the_script_and_the_cluster(tmp_path: Path, composed: dict) -> None:
    composed["trainer"]["nnodes"] = 2
    text = cluster.script("ray-job", "tpru_7b", ODD, values=["image=me/tpru:1", "shm=9Gi", "mount=/data"])
    script, job = yaml.safe_load_all(text)
    assert job["metadata"]["name"] == script["metadata"]["name"]
    assert job["spec"]["entrypoint"] == "bash /etc/tpru/train.sh"
    spec = job["spec"]["rayClusterSpec"]
    (workers,) = spec["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 2
    for group in (spec["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"runs": "/data", "script": "/etc/tpru", "shm": "/dev/shm"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
        assert container["image"] == "me/tpru:1"
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    words = run(script["data"]["train.sh"], tmp_path)
    assert words[:4] == ["train", "tpru_7b", "ray_kwargs.ray_init.num_cpus=null", ODD[0]]
    assert words[-2:][0] == "--out"
    assert words[-1].startswith("/data/tpru_7b-")


@pytest.mark.parametrize("code", [0, 1, 3, 4])
def test_a_ray_job_is_retried_after_a_failure_alone(tmp_path: Path, code: int) -> None:
    script = next(yaml.safe_load_all(cluster.script("ray-job", "tpru_7b", [])))["data"]["train.sh"]
    (tmp_path / "tpru").write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / "tpru").chmod(0o755)
    done = subprocess.run(["bash", "-c", script], env={"PATH": f"{tmp_path}:/bin"}, check=False)
    assert done.returncode == (1 if code == 1 else 0)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=20)))
def test_words_arrive_as_they_are(words: list[str]) -> None:
    texts = {
        kind: cluster.script(kind, "tpru_7b", words, out=Path("/nowhere/run")) for kind in cluster.TEMPLATES
    }
    inside = {
        "slurm": texts["slurm"],
        "ray-job": next(yaml.safe_load_all(texts["ray-job"]))["data"]["train.sh"],
        "skypilot": yaml.safe_load(texts["skypilot"])["run"],
    }
    for text in inside.values():
        (line,) = (line for line in text.splitlines() if line.startswith("  train=(tpru train tpru_7b"))
        after = shlex.split(line.strip()[len("train=(") : -1])
        assert after[-2 - len(words) : -2] == words


def test_ray_joins_a_cluster_without_numbers_of_its_own(composed: dict) -> None:
    of_cpu(composed, nodes=2)
    text = cluster.script("slurm", "tpru_tiny_cpu", [])
    init = "ray_kwargs.ray_init"
    assert f"tpru_tiny_cpu {init}.address=auto {init}.num_cpus=null {init}.num_gpus=null --out" in text


def test_on_one_node_ray_counts_the_cpus_of_the_job(composed: dict) -> None:
    composed["ray_kwargs"]["ray_init"] = {"num_cpus": None}
    assert "ray_kwargs.ray_init.num_cpus=96 --out" in cluster.script("slurm", "tpru_7b", [])
    composed["ray_kwargs"]["ray_init"] = {"num_cpus": None}
    with pytest.raises(RuntimeError, match="found 24 CPUs for Ray, expected 25"):
        cluster.script("slurm", "tpru_7b", [], values=["cpus=24"])


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--launch", "pbs"], "--launch: found 'pbs', expected one of slurm, ray-job, skypilot"),
        (
            ["--launch", "slurm", "--set", "image=x"],
            "--set image=x: found 'image', expected one of time, cpus",
        ),
        (["--launch", "slurm", "--set", "time=1 day"], "--set time=1 day: found '1 day', expected letters"),
        (["--launch", "slurm", "--set", "cpus=all"], "--set cpus=all: found 'all', expected a number"),
        (["--launch", "ray-job", "--set", "cpus=0"], "--set cpus=0: found '0', expected a number"),
        (["--launch", "slurm", "--set", "cpus=\u00b2"], "expected a number"),
        (
            ["--launch", "skypilot", "--set", "mount=@x"],
            "--set mount=@x: found '@x', expected an absolute path",
        ),
        (["--launch", "ray-job", "--set", "mount=runs"], "found 'runs', expected an absolute path"),
        (["--launch", "ray-job", "--out", "a"], "--out a: found a relative path, expected one below /runs"),
        (["--launch", "slurm", "a=b\nc"], "found 'a=b\\nc', expected no line break"),
        (["--launch", "slurm", "--resume", "x"], "--launch: expected a recipe, and neither --resume"),
        (["--submit"], "--submit: found no --launch, expected it, too"),
        (["--launch", "skypilot", "--submit"], "--submit: found skypilot, expected slurm or ray-job"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["tpru", "train", "tpru_7b", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    of_an_option = end.value.code == 2
    message = capsys.readouterr().err.rstrip() if of_an_option else str(end.value.code)
    assert found in message
    assert "\n" not in message
    assert of_an_option or not message.startswith("tpru: --set")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("2026-11-26", "run-2026-11-26"),
        ("123", "run-123"),
        ("null", "null"),
        ("___", "run"),
        ("\u65e5\u672c", "run"),
        ("9" * 60, "run-" + "9" * 43),
        ("My_Run.1", "my-run-1"),
    ],
)
def test_a_job_has_a_name_that_kubernetes_takes(folder: str, name: str, composed: dict) -> None:
    place = Path("/runs") / folder
    config_map, job = yaml.safe_load_all(cluster.script("ray-job", "tpru_7b", [], out=place))
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    mounted = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
    assert [config_map["metadata"]["name"], job["metadata"]["name"], *mounted] == [name] * 3
    assert yaml.safe_load(cluster.script("skypilot", "tpru_7b", [], out=place))["name"] == name


def test_submit_hands_the_script_to_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="found no command sbatch, expected it"):
        cluster.submitted("slurm", "x")
    (tmp_path / "sbatch").write_text('#!/bin/sh\nread -r line; echo "got $line"; exit 7\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setattr("sys.argv", ["tpru", "train", "tpru_7b", "--launch", "slurm", "--submit"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 7
    assert capfd.readouterr().out == "got #!/bin/bash\n"


def test_a_cluster_of_its_own_is_none_that_it_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    def joins(address: str | None) -> bool:
        return needs.joins_a_cluster({"ray_kwargs": {"ray_init": {"address": address}}})

    assert [joins("auto"), joins("local"), joins(None)] == [True, False, False]
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert [joins("auto"), joins("local"), joins(None)] == [True, False, True]


def test_variables_reach_the_workers_of_a_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()  # compose for real
    files = ["data.train_files=a.parquet", "data.val_files=a.parquet"]
    joined = plan.compose("tpru_tiny_cpu", [*files, "ray_kwargs.ray_init.address=auto"], tmp_path)
    assert joined.environment["VERL_PLATFORM"] == "cpu"
    env = "++ray_kwargs.ray_init.runtime_env.env_vars."
    told = dict(word.removeprefix(env).split("=", 1) for word in joined.command if word.startswith(env))
    assert {name: json.loads(value) for name, value in told.items()} == {
        **joined.environment,
        "TPRU_STOP_FILE": str(tmp_path / ".stop"),
    }
    assert not any(env in word for word in plan.compose("tpru_tiny_cpu", files, tmp_path).command)


def test_variables_that_settings_read_reach_the_workers_and_keys_stay_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()  # compose for real
    monkeypatch.setenv("ROWS", "a.parquet")
    monkeypatch.setenv("TPRU_SKIP_PATCHES", "only_server")
    monkeypatch.setenv("MINE", "hidden-and-long")
    given = ["data.train_files=${oc.env:ROWS}", "data.val_files=a.parquet"]
    monkeypatch.setenv("JUDGE", "http://me:hidden@host/v1")
    for setting in ("api_key=${oc.env:MINE}", "keys=['${oc.env:MINE}']", "judge=${oc.env:JUDGE}"):
        given.append(f"+reward.custom_reward_function.reward_kwargs.{setting}")
    given.append("+reward.custom_reward_function.reward_kwargs.other=${oc.env:NOT_SET,null}")
    joined = plan.compose("tpru_tiny_cpu", [*given, "ray_kwargs.ray_init.address=auto"], tmp_path)
    assert '++data.train_files="a.parquet"' in joined.command
    model = f"++actor_rollout_ref.model.path={json.dumps(os.environ['TPRU_DEMO_CHECKPOINT'])}"
    assert model in joined.command
    assert '++ray_kwargs.ray_init.runtime_env.env_vars.TPRU_SKIP_PATCHES="only_server"' in joined.command
    assert not any("hidden" in word for word in joined.command)
    judge = "reward.custom_reward_function.reward_kwargs"
    assert [
        line.partition(" is read on the cluster: its nodes need the variable")[0] for line in joined.doubts
    ] == [
        f"{judge}.api_key=${{oc.env:MINE}}",
        f"{judge}.keys=['${{oc.env:MINE}}']",
        f"{judge}.judge=${{oc.env:JUDGE}}",
    ]


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        ("data.train_files", ["a.parquet", "s3://b/c.parquet"], False),
        ("trainer.default_local_dir", "s3://b/run", False),
        ("actor_rollout_ref.model.path", "gs://b/model", False),
        ("actor_rollout_ref.model.path", "hdfs://b/model", True),
        ("trainer.default_local_dir", "/mnt/s3:b/run", True),
    ],
)
def test_storage_that_a_trainer_would_take_for_a_folder(key: str, value: object, taken: bool) -> None:
    config: dict = {}
    section = config
    for part in key.split(".")[:-1]:
        section = section.setdefault(part, {})
    section[key.rpartition(".")[2]] = value
    if taken:
        checks.on_a_disk(Settings("veRL", config))
        return
    with pytest.raises(ValueError, match=rf"{key}=\w+://b/.*: found an address, expected a file or folder"):
        checks.on_a_disk(Settings("veRL", config))


def test_a_run_is_not_put_into_storage() -> None:
    with pytest.raises(ValueError, match="--out s3:/b/run: found an address, expected a folder"):
        cluster.script("slurm", "tpru_7b", [], out=Path("s3://b/run"))


@pytest.mark.parametrize(
    "typed",
    ["+reward.api_key=sk-123456789", "+url=http://me:sk-123456789@host", "+x={api_key: sk-123456789}"],
)
def test_a_script_keeps_no_key(typed: str) -> None:
    with pytest.raises(
        ValueError, match=r"found a key in .*\*\*\*.*expected the variable that holds it"
    ) as e:
        cluster.script("slurm", "tpru_7b", [typed])
    assert "sk-123456789" not in str(e.value)
    assert "oc.env:MINE" in cluster.script("slurm", "tpru_7b", ["+reward.api_key=${oc.env:MINE}"])
