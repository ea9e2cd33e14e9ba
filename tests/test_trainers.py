"""Which `verl` is installed, and what a wrong one is told."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tpru_verl import recipes, trainers
from tpru_verl.launch import plan
from tpru_verl.models import FAMILIES

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a folder with a `verl` of these files, by these distributions, the first that Python finds."""

    def make(*files: str, owners: tuple[str, ...] = (), version: str = "0.3.2") -> Path:
        folder = tmp_path / "verl"
        for file in ("__init__.py", *files):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        (folder / "__init__.py").write_text(f'__version__ = "{version}"\n')
        for owner in owners:
            info = tmp_path / f"{owner.replace('-', '_')}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {owner}\nVersion: 1.0\n")
            (info / "RECORD").write_text("verl/__init__.py,,\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "verl", raising=False)
        return folder

    return make


def test_verl_is_recognised() -> None:
    found = trainers.find()
    assert (found.name, found.version, found.module) == ("veRL", "0.9.1", "verl.trainer.main_ppo")
    assert trainers.owners_of(found.folder) == ["verl"]
    assert trainers.unfit(found) == []
    assert trainers.untested(found) == ""
    assert all(found.knows(family) for family in FAMILIES.values())


def test_easyr1_is_recognised(install: Install) -> None:
    folder = install("trainer/main.py", owners=("lazyllm-verl",))
    found = trainers.find()
    assert found == trainers.Trainer("EasyR1", "0.3.2", folder)
    assert found.module == "verl.trainer.main"
    assert found.knows(FAMILIES["qwen2_5_vl"])
    assert not found.knows(FAMILIES["qwen3_vl"])
    (folder / "models/transformers").mkdir(parents=True)
    (folder / "models/transformers/qwen3_vl.py").touch()  # EasyR1's head
    assert [name for name, family in FAMILIES.items() if not found.knows(family)] == [
        "qwen3_5",
        "qwen3_5_moe",
    ]


@pytest.mark.parametrize(
    ("files", "owners"),
    [
        (("trainer/main.py", "trainer/main_ppo.py"), ("verl",)),
        (("trainer/main.py",), ("verl", "lazyllm-verl")),
    ],
)
def test_files_of_both_are_an_error(
    install: Install, files: tuple[str, ...], owners: tuple[str, ...]
) -> None:
    install(*files, owners=owners)
    with pytest.raises(RuntimeError, match=r"found files of both veRL and EasyR1 in .*: pip uninstall ") as e:
        trainers.find()
    assert "\n" not in str(e.value)


def test_neither_is_an_error(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    with pytest.raises(RuntimeError, match="found neither"):
        trainers.find()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"found none, expected veRL or EasyR1: pip install"):
        trainers.find()


@pytest.mark.parametrize(
    ("package", "version", "pin"),
    [("omegaconf", "2.4.0.dev3", "omegaconf<2.4"), ("transformers", "5.10.4", "transformers<5")],
)
def test_easyr1_beside_what_breaks_it_names_the_pin(
    install: Install, monkeypatch: pytest.MonkeyPatch, package: str, version: str, pin: str
) -> None:
    install("trainer/main.py")
    versions = {"omegaconf": "2.3.1", "transformers": "4.57.6", package: version}
    monkeypatch.setattr(trainers, "version_of", versions.get)
    with pytest.raises(RuntimeError, match=f"{package}: found {version}, expected {pin} for EasyR1 0.3.2"):
        plan.compose("tpru_7b")


@pytest.mark.parametrize("version", ["0.5.0", "0.7.0", "0.7.1", "0.8.0"])
def test_a_verl_without_plugins_is_refused(install: Install, version: str) -> None:
    install("trainer/main_ppo.py", version=version)
    message = (
        rf"^verl: found veRL {version}, which loads no plugins .*; pip install 'verl==0\.9\.1', or train"
    )
    with pytest.raises(RuntimeError, match=message) as error:
        plan.compose("tpru_7b")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", ["0.9.0", "0.10.0.dev", "1.0", "of unknown version"])
def test_a_verl_that_was_not_tested_is_named_and_goes_on(install: Install, version: str) -> None:
    install("trainer/main_ppo.py", version=version)
    found = trainers.find()
    assert trainers.unfit(found) == []
    assert trainers.untested(found).startswith(f"found veRL {version}, tested with 0.9.1; ")


def test_each_trainer_is_told_of_the_others_recipes(install: Install) -> None:
    with pytest.raises(
        ValueError, match=r"'tpru_7b_paper', a recipe for EasyR1 alone, beside veRL 0.9.1, exp"
    ):
        plan.compose("tpru_7b_paper")
    with pytest.raises(RuntimeError, match=r"found veRL 0\.9\.1 in .*, expected EasyR1"):
        recipes.easyr1_arguments("tpru_7b")
    install("trainer/main.py")
    with pytest.raises(ValueError, match=r"recipe: found 'tpru_7c', expected one of tpru_7b, "):
        recipes.easyr1_arguments("tpru_7c")


@pytest.mark.parametrize(
    ("text", "expected"), [("2.4.0.dev1", (2, 4, 0)), ("5", (5,)), ("2.13.0+cpu", (2, 13, 0)), ("x", ())]
)
def test_numbers_of_a_version(text: str, expected: tuple[int, ...]) -> None:
    assert trainers.numbers(text) == expected
