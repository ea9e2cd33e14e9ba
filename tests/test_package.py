"""What is installed: the wheel, the light base install, the entry points, make and its repair."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tpru_verl import __version__

REPAIR = Path("tpru_verl") / "doctor" / "torchvision_repair.py"


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that no build folder is left in the project."""
    source = tmp_path_factory.mktemp("source") / "tpru"
    leave = shutil.ignore_patterns(".git", ".venv", "outputs", "*.egg-info", "__pycache__")
    shutil.copytree(root, source, symlinks=True, ignore=leave)
    shutil.rmtree(source / "build", ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        "dist",
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, timeout=120)
    return next((source / "dist").glob("tpru_verl-*.whl"))


def test_wheel_holds_all_that_is_not_code(wheel: Path, root: Path, checkpoint: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    promised = {"tpru_verl/py.typed", "hydra_plugins/tpru.py", "tpru_verl/recipes/verl/tpru/paper.yaml"}
    for folder in ("recipes", "reward_fns"):
        promised |= {
            f"tpru_verl/{path.relative_to(root)}"
            for path in (root / folder).rglob("*")
            if path.suffix in {".py", ".yaml", ".jinja"}
        }
    promised |= {str(path.relative_to(root)) for path in (root / "tpru_verl" / "prompts").glob("*.jinja")}
    promised |= {str(path.relative_to(root)) for path in checkpoint.iterdir()}
    promised.add("tpru_verl/builder/sims/gui.html")
    assert promised <= names


def test_one_version(wheel: Path, root: Path) -> None:
    assert wheel.name.startswith(f"tpru_verl-{__version__}-")
    assert f"\nversion: {__version__}\n" in (root / "CITATION.cff").read_text()
    released = re.findall(
        r"^## (\d\S*) \(\d{4}-\d\d-\d\d\)$", (root / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0] == __version__


def test_wheel_holds_every_module_of_the_package(wheel: Path, root: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {str(path.relative_to(root)) for path in (root / "tpru_verl").rglob("*.py")} <= names


def test_wheel_has_nothing_beside_the_package(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tpru_verl", "hydra_plugins"}
    # One of ours would hide the Hydra plugins of all other distributions.
    assert "hydra_plugins/__init__.py" not in zipfile.ZipFile(wheel).namelist()


def test_recipes_of_the_wheel_are_found_by_hydra(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import tpru_verl; from tpru_verl import recipes; "
        "print(tpru_verl.__file__, recipes.compose('tpru_3b', ['+tpru=paper']).trainer.experiment_name)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(tmp_path / "site" / "tpru_verl" / "__init__.py"), "paper"], done.stderr


@pytest.mark.parametrize(
    "modules",
    [
        "tpru_verl, tpru_verl.cli, tpru_verl.sample, tpru_verl.grading, tpru_verl.prompts, tpru_verl.recipes",
        "tpru_verl.plugin, tpru_verl.plugin.vllm_process, tpru_verl.launch.checks, tpru_verl.plugin.hooks",
        "tpru_verl.reward_fns.verl, tpru_verl.reward_fns.easyr1",
    ],
)
def test_light_modules_import_nothing_heavy(modules: str) -> None:
    heavy = "{'torch', 'verl', 'vllm', 'ray', 'transformers', 'datasets', 'torchvision'}"
    code = f"import sys, {modules}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("group", "name"),
    [("verl.plugins", "tpru"), ("vllm.general_plugins", "tpru"), ("console_scripts", "tpru")],
)
def test_entry_point_loads(group: str, name: str) -> None:
    (entry,) = [
        entry for entry in entry_points(group=group, name=name) if entry.value.startswith("tpru_verl")
    ]
    assert callable(entry.load())


class TestMake:
    def make(self, root: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
        for file in ("Makefile", "pyproject.toml"):
            shutil.copy(root / file, folder)
        environment = {"PATH": os.environ["PATH"]}  # the variables of an outer `make test ARGS=...` left out
        return subprocess.run(["make", *args], cwd=folder, env=environment, capture_output=True, text=True)

    def stamp(self, folder: Path) -> None:
        check = ["sh", "-c", "cksum < pyproject.toml | tr ' ' '-'"]
        name = subprocess.run(check, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
        (folder / ".venv").mkdir()
        (folder / ".venv" / f".stamp-{name}").touch()

    @pytest.mark.parametrize("target", ["demo", "test", "lint"])
    def test_installs_when_there_is_no_environment(self, target: str, root: Path, tmp_path: Path) -> None:
        plan = self.make(root, tmp_path, "-n", target).stdout
        install, repair = plan.index("pip install"), plan.index("torchvision_repair")
        assert install < repair < plan.index("touch .venv/.stamp-")

    def test_installs_nothing_the_second_time(self, root: Path, tmp_path: Path) -> None:
        shutil.copy(root / "pyproject.toml", tmp_path)
        self.stamp(tmp_path)
        assert self.make(root, tmp_path, "-n", "test").stdout.count("\n") == 1

    def test_installs_again_when_a_pin_changed(self, root: Path, tmp_path: Path) -> None:
        pyproject = tmp_path / "pyproject.toml"
        pyproject.write_text((root / "pyproject.toml").read_text().replace("ray==2.60.0", "ray==2.59.0"))
        self.stamp(tmp_path)
        assert "pip install" in self.make(root, tmp_path, "-n", "test").stdout

    def test_an_unsuitable_python_is_refused_in_one_line(self, root: Path, tmp_path: Path) -> None:
        old = tmp_path / "python"
        old.write_text(
            f'#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); $1"\n'
        )
        old.chmod(0o755)
        done = self.make(root, tmp_path, f"PYTHON={old}", "test")
        assert done.returncode != 0
        assert done.stderr.startswith("Found Python 3.9, expected 3.10 to 3.12")
        assert not (tmp_path / ".venv").exists()

    def test_an_interrupted_install_leaves_no_stamp(self, root: Path, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text(
            '#!/bin/sh\n[ "$1" = -c ] && exit 0\n'  # the version is fine, the environment's pip fails
            "mkdir -p .venv/bin\nln -s /bin/false .venv/bin/python\n"
        )
        python.chmod(0o755)
        done = self.make(root, tmp_path, f"PYTHON={python}", "test")
        assert done.returncode != 0
        assert "PIP_EXTRA_INDEX_URL" in done.stdout
        assert not list((tmp_path / ".venv").glob(".stamp-*"))


class TestTorchvisionRepair:
    @pytest.fixture
    def site(self, tmp_path: Path) -> Path:
        """site-packages of an environment with three packages that load, and a pip that only talks."""
        venv.create(tmp_path / "env", with_pip=False)
        site = next((tmp_path / "env" / "lib").glob("python3*")) / "site-packages"
        (site / "pip.py").write_text("import sys; print(*sys.argv[1:], file=sys.stderr)\n")
        for name in ("torchvision", "torchaudio", "torchcodec"):
            (site / name).mkdir()
            (site / name / "__init__.py").touch()
        return site

    def repair(self, root: Path, site: Path) -> subprocess.CompletedProcess[str]:
        python = site.parents[2] / "bin" / "python"
        return subprocess.run([python, root / REPAIR], capture_output=True, text=True)

    def break_operators(self, site: Path, error: str) -> None:
        (site / "torchvision" / "__init__.py").write_text("from torchvision import _meta_registrations\n")
        (site / "torchvision" / "_meta_registrations.py").write_text(f"raise RuntimeError({error!r})\n")

    def test_does_nothing_where_all_is_well(self, root: Path, site: Path) -> None:
        done = self.repair(root, site)
        assert (done.returncode, done.stdout.count("\n")) == (0, 1)
        assert "no repair needed" in done.stdout
        assert not list(site.glob("tpru*"))

    def test_switches_missing_operators_off_and_then_is_content(self, root: Path, site: Path) -> None:
        self.break_operators(site, "operator torchvision::nms does not exist")
        first, second = self.repair(root, site), self.repair(root, site)
        assert first.returncode == 0, first.stderr
        assert "switched off by" in first.stdout
        assert len(list(site.glob("tpru*.pth"))) == 1
        assert "no repair needed" in second.stdout

    def test_uninstalls_what_cannot_load(self, root: Path, site: Path) -> None:
        (site / "torchaudio" / "__init__.py").write_text("raise OSError('libcudart.so.13: not found')\n")
        done = self.repair(root, site)
        assert (
            "torchaudio cannot load beside this torch (OSError: libcudart.so.13: not found): uninstalled"
            in done.stdout
        )
        assert done.stderr.split() == ["uninstall", "--quiet", "--yes", "torchaudio"]

    def test_another_breakage_is_told_and_left_alone(self, root: Path, site: Path) -> None:
        self.break_operators(site, "something else")
        done = self.repair(root, site)
        assert done.returncode == 1
        assert done.stderr.endswith("RuntimeError: something else; reinstall torch and torchvision\n")
        assert done.stderr.count("\n") == 1
        assert not list(site.glob("tpru*"))


def test_no_class_name_is_defined_twice(root: Path) -> None:
    found = Counter(
        name
        for path in (root / "tpru_verl").rglob("*.py")
        for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8"), flags=re.M)
    )
    assert [name for name, times in found.items() if times > 1] == []
