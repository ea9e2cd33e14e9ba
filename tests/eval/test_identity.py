"""Stored answers are reused for the same model, options and weights, and for no others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.endpoint import endpoint
from support.rows import reordering, write_parquet

from tpru_verl.data.tokens.pixels import Bounds
from tpru_verl.eval.engines.base import Sampling
from tpru_verl.eval.engines.endpoint import Endpoint
from tpru_verl.eval.engines.local import Local, _fingerprint

Tpru = Callable[..., tuple[object, str, str]]


def local(checkpoint: Path, **options: object) -> str:
    engine = Local(str(checkpoint), Sampling(), min_pixels=3136, max_pixels=3136, options=options)
    return engine.identity


def remote(**extra: object) -> str:
    return Endpoint("m", "http://h/v1", Bounds(), Sampling(), extra=extra).identity


DIFFERENT: list[tuple[dict[str, object], dict[str, object]]] = [
    ({}, {"quantization": "fp8"}),
    ({"dtype": "float16"}, {"dtype": "bfloat16"}),
    ({"hf_overrides": {"a": 1}}, {"hf_overrides": {"a": 2}}),
    ({"thinking_token_budget": 512}, {"thinking_token_budget": 4096}),
    ({"bos_token": "<s>"}, {"bos_token": "<t>"}),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_options_tell_answers_apart(
    checkpoint: Path, one: dict[str, object], other: dict[str, object]
) -> None:
    assert local(checkpoint, **one) != local(checkpoint, **other)
    assert remote(**one) != remote(**other)


def test_the_order_of_options_does_not_matter_and_secrets_cannot_be_read(checkpoint: Path) -> None:
    one, other = ({"a": 1, "api_key": "hidden-1"}, {"api_key": "hidden-1", "a": 1})
    for identity in (lambda **options: local(checkpoint, **options), remote):
        assert identity(**one) == identity(**other)
        assert "hidden-1" not in identity(**one)


def test_stores_without_options_stay_valid(checkpoint: Path) -> None:
    """The forms of the first version."""
    assert remote() == "endpoint:http://h/v1:m:[]"
    assert local(checkpoint) == f"vllm:{_fingerprint(str(checkpoint))}"


@pytest.fixture
def args(tmp_path: Path) -> list[object]:
    """Arguments of an evaluation of two rows, without its server."""
    source = write_parquet(tmp_path / "rows.parquet", [reordering(i) for i in range(2)])
    return ["tiny", "--rows", source, "--out", tmp_path / "out", "--base-url"]


@pytest.mark.parametrize(
    ("first", "second", "asked"),
    [
        ("/models/base", "/models/trained", 2),
        ("/models/base", "/models/base", 0),
        (None, None, 0),
        (None, "tiny", 0),  # vLLM where no other name was given: it says no more than the name
        ("tiny", "/models/trained", 2),
    ],
)
def test_the_weights_behind_a_name(
    tpru_eval: Tpru, args: list[object], tmp_path: Path, first: str | None, second: str | None, asked: int
) -> None:
    with endpoint() as server:
        server.root = first
        assert tpru_eval(*args, server.url)[0] == 0
        server.root = second
        code, _, err = tpru_eval(*args, server.url)
    assert code == 0, err
    assert len(server.asked) == 2 + asked
    hint = f"if the model of this name has changed, delete {tmp_path}/out/responses.jsonl"
    assert (hint in err) == (asked == 0)


def test_a_budget_of_tokens_is_no_secret(tpru_eval: Tpru, args: list[object], tmp_path: Path) -> None:
    with endpoint() as server:
        for budget in (512, 4096):
            assert tpru_eval(*args, server.url, "--option", f"thinking_token_budget={budget}")[0] == 0
    assert [asked.body["thinking_token_budget"] for asked in server.asked] == [512, 512, 4096, 4096]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["settings"]["options"] == {"thinking_token_budget": 4096}
    assert "thinking_token_budget=4096" in summary["command"]


def test_stored_answers_of_named_weights_need_no_server(
    tpru_eval: Tpru, args: list[object], tmp_path: Path
) -> None:
    with endpoint() as server:
        for server.root in ("/models/base", "/models/mine"):
            assert tpru_eval(*args, server.url)[0] == 0
    code, _, err = tpru_eval(*args, server.url)
    assert code == 0, err
    assert "2 answers are there already, 0 to be asked" in err
    assert json.loads((tmp_path / "out/server.json").read_text()) == {f"{server.url} tiny": "/models/mine"}
    (tmp_path / "out/server.json").write_text("[")
    assert tpru_eval(*args, server.url)[0] != 0


def test_stored_answers_need_no_server(tpru_eval: Tpru, args: list[object]) -> None:
    with endpoint() as server:
        server.root = "tiny"
        assert tpru_eval(*args, server.url)[0] == 0
    code, _, err = tpru_eval(*args, server.url)
    assert code == 0, err
    assert "2 answers are there already, 0 to be asked" in err
