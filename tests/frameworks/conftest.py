"""What the tests of other harnesses start from."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.endpoint import by_prompt, endpoint
from support.harnesses import OwnRun, own_run, write_sources


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnRun]:
    """Our own run of two benchmarks; the harness asks the same endpoint about the same rows."""
    with endpoint(by_prompt) as server:
        yield own_run(server, write_sources(tmp_path), tmp_path / "ours")
