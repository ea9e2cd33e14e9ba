"""The tiny model of each family, made once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tpru_verl.models import FAMILIES

TinyModels = Callable[[str], Path]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """The folder of the tiny model with this `model_type`."""
    made: dict[str, Path] = {}

    def folder_of(model_type: str) -> Path:
        if model_type not in made:
            from tpru_verl.demo.tiny_families import save

            made[model_type] = save(FAMILIES[model_type], tmp_path_factory.mktemp(model_type))
        return made[model_type]

    return folder_of
