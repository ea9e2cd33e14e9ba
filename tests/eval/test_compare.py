"""`tpru eval compare` with `--option`: what acts on template, pixels or sampling must be the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.endpoint import endpoint
from support.rows import reordering, write_parquet

Tpru = Callable[..., tuple[object, str, str]]
THINKING = 'chat_template_kwargs={"enable_thinking": false}'


@pytest.fixture
def evaluated(tpru_eval: Tpru, tmp_path: Path) -> Callable[..., Path]:
    """The folder of an evaluation of one row by an endpoint, with some `--option`."""
    source = write_parquet(tmp_path / "rows.parquet", [reordering(1)])

    def call(name: str, *options: str) -> Path:
        with endpoint() as server:
            args = ["tiny", "--base-url", server.url, "--rows", source, "--out", tmp_path / name]
            code, _, err = tpru_eval(*args, *(part for option in options for part in ("--option", option)))
        assert code == 0, err
        return tmp_path / name

    return call


def test_fields_of_requests_that_differ_are_refused(tpru_eval: Tpru, evaluated: Callable[..., Path]) -> None:
    one, two = evaluated("a", "top_k=1", THINKING, "repetition_penalty=1.1"), evaluated("b", "top_k=20")
    code, _, _ = tpru_eval("compare", one, two)
    assert "did not ask the same" in str(code)
    assert "--option top_k: 1 and 20" in str(code)
    assert "--option chat_template_kwargs: {'enable_thinking': False} and none" in str(code)
    assert "--option repetition_penalty: 1.1 and none" in str(code)
    code, out, _ = tpru_eval("compare", one, two, "--anyway")
    assert code == 0
    assert "not the same: --option top_k: 1 and 20" in " ".join(out.split())


def test_equal_fields_and_keys_are_no_difference(tpru_eval: Tpru, evaluated: Callable[..., Path]) -> None:
    one, two = evaluated("a", "top_k=1", "api_key=hidden-1", THINKING), evaluated("b", THINKING, "top_k=1")
    assert tpru_eval("compare", one, two)[0] == 0


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"quantization": "fp8", "tensor_parallel_size": 2, "dtype": "float16"}, False),
        ({"mm_processor_kwargs": {"max_pixels": 784}}, True),
    ],
)
def test_options_of_vllm_make_the_model_but_for_its_pixels(
    tpru_eval: Tpru, evaluated: Callable[..., Path], options: dict[str, Any], refused: bool
) -> None:
    """As two local evaluations write them."""
    one, two = evaluated("a"), evaluated("b")
    for folder, own in ((one, {}), (two, options)):
        summary = json.loads((folder / "summary.json").read_text())
        summary["settings"] |= {"engine": "vllm", "options": own}
        (folder / "summary.json").write_text(json.dumps(summary))
    code, _, _ = tpru_eval("compare", one, two)
    assert ("--option mm_processor_kwargs: none and" in str(code)) == (code != 0) == refused


@pytest.mark.parametrize(
    ("option", "ours"),
    [
        ("temperature=1", "--temperature"),
        ("top_p=0.5", "--top-p"),
        ("max_tokens=5", "--max-tokens"),
        ("max_completion_tokens=5", "--max-tokens"),
        ("n=2", "--n"),
        ("seed=7", "--seed"),
        ("model=other", "MODEL"),
        ('stop=["x"]', "--after-reasoning"),
        ("messages=[]", "--rows"),
        ("top_logprobs=5", "--decide"),
    ],
)
@pytest.mark.parametrize("where", [["--base-url", "http://127.0.0.1:9/v1"], []])
def test_an_option_that_the_results_name_as_ours_is_refused(
    tpru_eval: Tpru, tmp_path: Path, checkpoint: Path, where: list[str], option: str, ours: str
) -> None:
    source = write_parquet(tmp_path / "rows.parquet", [reordering(1)])
    args = [checkpoint, *where, "--rows", source, "--out", tmp_path / "out", "--option", option]
    code, _, err = tpru_eval(*args)
    name = option.partition("=")[0]
    assert code == 2
    assert err.startswith(f"tpru: --option: found '{name}', which `tpru eval` sets itself ({ours}")
    assert not (tmp_path / "out").exists()
