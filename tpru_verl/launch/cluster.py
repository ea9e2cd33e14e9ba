"""The script that runs a training on a cluster: `tpru train RECIPE --launch slurm|ray-job|skypilot`.

The script starts `tpru train` itself, on one node, so that a run on a cluster is watched, stopped and
continued as any other. The templates are in `recipes/cluster`. docs/clusters.md is for users.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tpru_verl import recipes, trainers
from tpru_verl.launch import folder, needs, plan, sizes
from tpru_verl.launch.settings import Settings, value_at
from tpru_verl.redaction import redact_settings
from tpru_verl.terminal import OptionError

TEMPLATES = {"slurm": "slurm.sh.jinja", "ray-job": "ray-job.yaml.jinja", "skypilot": "skypilot.yaml.jinja"}
# What `--set` changes of each, and what it is without; "" is worked out from the recipe.
VALUES: dict[str, dict[str, str]] = {
    "slurm": {"time": "1-00:00:00", "cpus": ""},
    "ray-job": {
        "image": "tpru-verl:gpu",
        "claim": "tpru",
        "mount": "/runs",
        "cpus": "",
        "memory": "512Gi",
        "shm": "128Gi",
    },
    "skypilot": {"gpu": "H100", "bucket": "s3://tpru-runs", "mount": "/runs", "cpus": ""},
}
SUBMIT = {"slurm": ["sbatch"], "ray-job": ["kubectl", "create", "-f", "-"]}
CPUS_A_GPU = 12  # of a node; veRL keeps 3 for each GPU and 9 for TransferQueue (`needs`)
CPUS_WITHOUT = 2  # of a node of the tiny recipe
# Safe in a shell, in YAML and in a line of #SBATCH.
_ANY = (re.compile(r"[\w.:,@/+-]+"), "letters, digits and . : , @ / + -")
_SPECIAL = {
    "cpus": (re.compile(r"[1-9][0-9]*"), "a number"),
    "mount": (re.compile(r"/[\w./-]+"), "an absolute path of letters, digits and . _ -"),
}
_LONGEST_NAME = 47  # letters of a RayJob's name: KubeRay appends to it
_INIT = "ray_kwargs.ray_init"


def launch(
    kind: str | None,
    recipe: str | None,
    overrides: Sequence[str],
    values: Sequence[str],
    submit: bool,
    again: bool,
    **how: Any,
) -> int:
    """Print the script for a recipe, or submit it; returns the exit code.

    `values`, `how`: as for `script`. `again`: --resume or --dry-run was given, which do not go with a script.
    Raises as `script` does.
    """
    if kind is None:
        raise OptionError(f"{'--submit' if submit else '--set'}: found no --launch, expected it, too")
    if recipe is None or again:
        raise OptionError(
            "--launch: expected a recipe, and neither --resume nor --dry-run; the script that started a run "
            "continues it"
        )
    if submit and kind not in SUBMIT:
        raise OptionError(
            f"--submit: found {kind}, expected {' or '.join(SUBMIT)}; save the script for skypilot, and give "
            "it to sky jobs launch"
        )
    text = script(kind, recipe, overrides, values=values, **how)
    if submit:
        return submitted(kind, text)
    print(text, end="")
    return 0


def script(
    kind: str,
    recipe: str,
    overrides: Sequence[str],
    *,
    out: Path | None = None,
    options: Sequence[str] = (),
    grace: float = 120.0,
    values: Sequence[str] = (),
) -> str:
    """The script for a recipe and its overrides, as text.

    `out`: the run's folder, as the cluster sees it. `options`: those of `tpru train` that the script passes
    on. `grace`: seconds that saving a checkpoint may take. `values`: NAME=VALUE in place of `VALUES`.

    Raises as `plan.compose` does, and ValueError, in one line, for a kind, a name, a value or a character
    that the script cannot have.
    """
    if kind not in TEMPLATES:
        raise OptionError(f"--launch: found {kind!r}, expected one of {', '.join(TEMPLATES)}")
    chosen = _values(kind, values)
    place = _place(recipe, out, chosen.get("mount"))
    for word in (*overrides, str(place)):
        if not word.isprintable():
            raise ValueError(f"found {word!r}, expected no line break and no invisible character in it")
    settings = plan.compose(recipe, overrides).settings
    sizes.check(settings)
    for word, shown in zip(overrides, redact_settings(overrides, settings.config), strict=True):
        if word != shown:  # the script, and the cluster's records of it, would keep the key
            name = word.partition("=")[0]
            raise ValueError(
                f"--launch: found a key in {shown}, expected the variable that holds it: "
                f"'{name}=${{oc.env:NAME}}'"
            )
    if settings.trainer != trainers.VERL:
        raise ValueError(f"--launch: found {settings.trainer}, expected veRL, which the scripts are for")
    joins = kind == "ray-job" or settings.integer("nodes") > 1
    gpus, cpu = settings.integer("gpus"), settings["device"] == "cpu"
    cpus = chosen["cpus"] or str(CPUS_WITHOUT if cpu else CPUS_A_GPU * gpus)
    ours = _for_cluster(settings) if joins else [] if cpu else _for_node(settings, cpus)
    return _rendered(
        TEMPLATES[kind],
        **{**chosen, "cpus": cpus},
        recipe=recipe,
        run=str(place),
        name=_name(place),
        words=[recipe, *ours, *overrides],
        options=list(options),
        nodes=max(1, settings.integer("nodes")),
        gpus=gpus,
        cpu=cpu,
        environment={"VERL_PLATFORM": "cpu"} if cpu else {},
        grace=int(grace),
        folder=str(Path.cwd()),
        bin=str(Path(sys.executable).parent),
        ray=_ray_version(),
    )


def submitted(kind: str, text: str) -> int:
    """Hand a script to the cluster's own command, whose output is shown; returns that command's exit code.

    Raises RuntimeError where the command is not installed here.
    """
    command = SUBMIT[kind]
    try:
        return subprocess.run(command, input=text, text=True, check=False).returncode
    except FileNotFoundError:
        raise RuntimeError(
            f"--submit: found no command {command[0]}, expected it; run this where jobs are submitted, or "
            f"save the script there and run {shlex.join(command)}"
        ) from None


def _values(kind: str, given: Sequence[str]) -> dict[str, str]:
    values = dict(VALUES[kind])
    for item in given:
        name, _, value = item.partition("=")
        if name not in values:
            raise OptionError(f"--set {item}: found {name!r}, expected one of {', '.join(values)} for {kind}")
        allowed, expected = _SPECIAL.get(name, _ANY)
        if not allowed.fullmatch(value):
            raise OptionError(f"--set {item}: found {value!r}, expected {expected}")
        values[name] = value
    return values


def _place(recipe: str, out: Path | None, mount: str | None) -> Path:
    """The run's folder. On machines that share no disk with this one it lies below `mount`."""
    if mount is None:
        return folder.new(out, recipe)
    if out is None:
        return Path(mount) / f"{recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    if not out.is_absolute():
        raise OptionError(
            f"--out {out}: found a relative path, expected one below {mount}, the shared volume"
        )
    return out


def _for_cluster(settings: Settings) -> list[str]:
    """Overrides with which Ray joins a cluster; it refuses numbers of its own for one."""
    found = value_at(settings.config, _INIT)
    own = {"address": "auto", "num_cpus": "null", "num_gpus": "null"}
    return [f"{_INIT}.{key}={value}" for key, value in own.items() if (found or {}).get(key) is not None]


def _for_node(settings: Settings, cpus: str) -> list[str]:
    """Ray would count all CPUs of the node, not those of the job. Raises RuntimeError where they are few."""
    init = value_at(settings.config, _INIT)
    if init.get("num_cpus") is not None:
        return []
    init["num_cpus"] = int(cpus)
    needs.ray_cpus(settings)
    return [f"{_INIT}.num_cpus={cpus}"]


def _name(place: Path) -> str:
    """A name that Kubernetes and SkyPilot take: small letters, digits and hyphens, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", place.name.lower()).strip("-")
    return (name if name[:1].isalpha() else f"run-{name}")[:_LONGEST_NAME].strip("-")


def _ray_version() -> str:
    try:
        return version("ray")
    except PackageNotFoundError:
        return "2.55.0"


def _rendered(template: str, **context: object) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(recipes.__file__).parent / "cluster"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # a shell script or YAML, whose words are quoted by the filters
    )
    environment.filters["sh"] = shlex.quote
    environment.filters["words"] = shlex.join
    return environment.get_template(template).render(**context)


def passed_on(
    stop_on: Sequence[str], stall_timeout: float, restarts: int, grace: float, verbose: bool
) -> list[str]:
    """Options of `tpru train` as words of a command line."""
    numbers: Mapping[str, float] = {"stall-timeout": stall_timeout, "restarts": restarts, "grace": grace}
    return [
        *(f"--stop-on={alarm}" for alarm in stop_on),
        *(f"--{name}={value:g}" for name, value in numbers.items()),
        *(["--verbose"] if verbose else []),
    ]
