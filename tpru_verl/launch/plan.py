"""What a run would be: a recipe composed for the host that is installed, and the command that starts it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpru_verl import recipes
from tpru_verl import trainers as hosts
from tpru_verl.launch import checks as launch
from tpru_verl.launch import easyr1
from tpru_verl.launch.settings import Settings


@dataclass(frozen=True)
class Plan:
    """`environment`: the variables that the command needs beside those that are there."""

    host: hosts.Host
    settings: Settings
    command: list[str]
    environment: Mapping[str, str]

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.command)])

    def check(self) -> None:
        """Look at model, data, disk and Ray. Raises as `launch.check` does, before anything starts."""
        look = launch.check if self.host.name == hosts.VERL else launch.check_easyr1
        look(self.settings.config)


def compose(recipe: str, overrides: Sequence[str] = ()) -> Plan:
    """The run that `tpru train RECIPE OVERRIDES` starts.

    Raises:
        ValueError: an unknown recipe or key, one of the other host, a value that it refuses.
        RuntimeError: no host, both, or EasyR1 beside a package that breaks it.
    """
    host = hosts.find()
    if broken := hosts.broken_pins(host):
        raise RuntimeError("\n".join(broken))
    if host.name == hosts.EASYR1:
        arguments = recipes.easyr1_arguments(recipe, overrides)
        settings = Settings(host.name, easyr1.compose(arguments))
        return Plan(host, settings, [sys.executable, "-m", host.module, *arguments], {})
    from omegaconf import OmegaConf

    config = recipes.compose(recipe, overrides)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    settings = Settings(host.name, {str(key): value for key, value in plain.items()})
    command = [sys.executable, "-m", host.module, "--config-name", recipe, *overrides]
    return Plan(host, settings, command, launch.environment(config))
