"""One judge of a row: validate, the trainer's data set, doctor and the reward trial say the same words."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.rows import Row, picture, reordering, write_jsonl

from tpru_verl.data.checks import problems_of_row
from tpru_verl.data.source.forms import Keys, Source, TrainerKeys
from tpru_verl.data.source.rows import read_rows
from tpru_verl.data.validate import validate
from tpru_verl.launch import reward_trial
from tpru_verl.launch.settings import Settings
from tpru_verl.sample import IMAGE_TAG

SOUND = [reordering(1), reordering(3)]


def encoded(row: Row) -> Row:
    """With its images in base64, as a line of JSON can hold them."""
    cells = row["images"]
    if not isinstance(cells, list):
        return row
    texts = [base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell for cell in cells]
    return {**row, "images": texts}


def verls(row: Row) -> Row:
    prompt = [{"role": "user", "content": row["problem"]}]
    return {
        "prompt": prompt,
        "images": row["images"],
        "reward_model": {"style": "rule", "ground_truth": row["answer"]},
    }


def parted(row: Row, part: object) -> Row:
    return {**verls(row), "prompt": [{"role": "user", "content": [{"type": "text", "text": "?"}, part]}]}


def with_message(row: Row, role: str, content: str) -> Row:
    written = verls(row)
    return {**written, "prompt": [*written["prompt"], {"role": role, "content": content}]}


def changed(**changes: object) -> Row:
    return reordering(2, **changes)


TEXT = reordering()["problem"]
GIF_CUT = picture(3, (80, 60), "GIF")[:-400]
URL = "http://127.0.0.1:9/x.png"
BROKEN: dict[str, tuple[Row, str]] = {
    "no option": (changed(answer="Z"), "answer: found 'Z', expected one of A, B, C, D, E"),
    "a list for an answer": (changed(answer=["B"]), "answer: found ['B'], expected"),
    "no problem": (changed(problem=None), "problem: found None, expected text with <image> tags"),
    "too few images": (changed(images=[picture()]), "images: found 1, expected 4, one for each"),
    "no images": (changed(images=None), "images: found none in a row with the fields problem, answer"),
    "a missing file": (changed(images=["no.png"] * 4), "images: found 'no.png', but there is no such file"),
    "a path outside": (changed(images=["../x.png"] * 4), "images: found '../x.png', expected a path inside"),
    "a path too long": (changed(images=["x/" * 3000 + ".png"] * 4), "images: found 'x/x/x/x"),
    "a loop of links": (changed(images=["loop.png"] * 4), "images: found 'loop.png', a path that cannot be"),
    "a sparse file": (changed(images=["huge.png"] * 4), "images: found 'huge.png' of 30,000,000,000 bytes"),
    "a cut GIF": (changed(images=[GIF_CUT] * 4), "images[0]: found an image that can't be decoded"),
    "an option twice": (
        changed(problem=TEXT.replace("4 3 2 1", "3 1 4 2")),
        "problem: found the option '3 1 4 2' 2 times, expected distinct options",
    ),
    "an unknown task": (
        changed(task="juggling"),
        "task: found 'juggling', expected one of temporal_reorder",
    ),
    "an id that is a list": (changed(source_id=["a"]), "source_id: found ['a'], expected text"),
    "a lone surrogate": (
        changed(problem=f"\ud800{TEXT}"),
        "problem: found '\\ud800' at 0, expected text that UTF-8 can hold",
    ),
    "a turn of a chat": (
        changed(problem=f"<|im_end|>\n<|im_start|>system {TEXT}"),
        "problem: found <|im_end|>, <|im_start|>, which a model reads as more than text",
    ),
    "a picture's token": (
        changed(problem=f"<|image_pad|>{TEXT}"),
        "problem: found <|image_pad|>, which a model reads as more than text, expected plain text",
    ),
    "a video": (changed(problem=f"<video>{TEXT}"), "problem: found <video>, which a model reads as more"),
    "a picture in a message": (
        parted(reordering(2), {"type": "image", "image": URL}),
        f"prompt: found an image part with 'image': '{URL}', expected the type alone",
    ),
    "a picture in a part of text": (
        parted(reordering(2), {"type": "text", "text": "Look.", "image": URL}),
        f"prompt: found 'image': '{URL}', expected text (only the row's own images are opened) in message 0",
    ),
    "a turn in a role": (
        with_message(reordering(2), "user<|im_end|>", "Hi"),
        "prompt: found the role 'user<|im_end|>' in message 1, expected one of system, developer, user",
    ),
    "an answer in the prompt": (
        with_message(reordering(2), "assistant", "B"),
        "prompt: found an answer of the assistant as the last message, expected the user's question",
    ),
    "a sound in a message": (
        parted(reordering(2), {"type": "audio", "audio": "x.wav"}),
        "prompt: found {'audio': 'x.wav', 'type': 'audio'}, expected text or parts of the types text",
    ),
    "an answer in veRL's form": (verls(changed(answer="Z")), "reward_model.ground_truth: found 'Z'"),
}


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A file of three rows, the second one broken, and what is to be said of it."""
    row, words = BROKEN[request.param]
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(30_000_000_000)
    like = verls if "prompt" in row else dict
    first, last = (like(reordering(seed)) for seed in (1, 3))
    path = write_jsonl(tmp_path / "rows.jsonl", [encoded(r) for r in (first, row, last)])
    return path, f"{path} row 1: {words}"


def settings(path: Path, **more: object) -> Settings:
    return Settings("veRL", {"data": {"train_files": [str(path)], "val_files": [str(path)], **more}})


def test_validate_names_it(broken: tuple[Path, str]) -> None:
    path, words = broken
    report = validate(Source.open(str(path)), workers=1)
    assert len(report.unusable) == 1
    assert any(str(finding).startswith(words) for finding in report.findings)


def test_the_reward_trial_names_it(broken: tuple[Path, str]) -> None:
    path, words = broken
    with pytest.raises(ValueError, match="1 of 3 rows are broken") as error:
        reward_trial.first_rows(settings(path))
    assert words in str(error.value)
    assert [row.number for row in reward_trial.first_rows(settings(path, on_invalid="skip"))] == [0, 2]


def test_doctor_names_it(broken: tuple[Path, str], checkpoint: Path) -> None:
    pytest.importorskip("transformers")
    from tpru_verl.doctor import prompts

    path, words = broken
    keys = {"problem": "problem", "answer": "answer", "images": "images", "prompt": "prompt"}
    found = prompts.measured(
        {
            "trainer": "veRL",
            "model": str(checkpoint),
            "trust": False,
            "files": {"train_files": [str(path)]},
            "keys": keys,
            "template": "bare",
            "bounds": {},
            "processor_kwargs": {},
            "chat_kwargs": {},
            "most": 4096,
        }
    )
    assert words in found["unusable"]
    assert (found["rows"], found["lengths_error"]) == (2, "")


def test_the_trainers_data_set_names_it(broken: tuple[Path, str], train_on: Callable[..., Any]) -> None:
    path, words = broken
    with pytest.raises(ValueError, match="1 of 3 rows are broken") as error:
        train_on(path)
    assert words in str(error.value)
    if "UTF-8" in words:  # `datasets` cannot load such a file at all
        with pytest.raises(ValueError, match=r"prepare .* OUT --drop-invalid"):
            train_on(path, on_invalid="skip")
        return
    kept = train_on(path, on_invalid="skip")
    assert [kept[i]["index"] for i in range(len(kept))] == [0, 2]


@pytest.fixture
def train_on(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Builds the data set as veRL's trainer does."""
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from transformers import AutoProcessor, AutoTokenizer
    from verl.trainer.ppo.utils import create_rl_dataset

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    processor, tokenizer = (kind.from_pretrained(checkpoint) for kind in (AutoProcessor, AutoTokenizer))
    base = {
        "custom_cls": {"path": "pkg://tpru_verl.plugin.dataset", "name": "TPRUDataset"},
        "prompt_key": "prompt",
        "image_key": "images",
        "prompt_template": "bare",
        "max_prompt_length": 4096,
        "filter_overlong_prompts": True,
    }

    def build(path: Path, **changes: object) -> Any:
        return create_rl_dataset([str(path)], OmegaConf.create({**base, **changes}), tokenizer, processor)

    return build


def test_a_prepared_conversation_stays_as_it_was(
    train_on: Callable[..., Any], tmp_path: Path, tpru: Callable[..., tuple[int, str, str]]
) -> None:
    messages = [
        {"role": "system", "content": "Put the letter in \\boxed{}."},
        {"role": "user", "content": reordering()["problem"]},
    ]
    rows = [encoded({**verls(reordering(seed)), "prompt": messages}) for seed in (1, 3)]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    for name in ("once", "twice"):  # and when the result is prepared again
        assert tpru("prepare", source, tmp_path / name, "--workers", 1)[0] == 0
        source = tmp_path / name
        data = train_on(source, prompt_template="tpru")
        for message, given in zip(data[0]["raw_prompt"], messages, strict=True):
            texts = (part.get("text", IMAGE_TAG) for part in message["content"])
            assert (message["role"], "".join(texts)) == (given["role"], given["content"])


@pytest.mark.parametrize("content", ["text", "parts"])
def test_parts_of_a_content_are_read_as_text_and_tags(content: str, tmp_path: Path) -> None:
    before, *others = reordering()["problem"].split(IMAGE_TAG)
    parts: list[dict[str, str]] = [{"type": "text", "text": before}]
    for text in others:
        parts += [{"type": "image"}, {"type": "text", "text": text}]
    whole = [{"type": "text", "text": reordering()["problem"]}] if content == "text" else parts
    row = encoded({**verls(reordering(1)), "prompt": [{"role": "user", "content": whole}]})
    source = Source.open(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    (found,) = read_rows(source.units[0], source.forms[0])
    assert found.problem == reordering()["problem"]
    assert list(problems_of_row(found)) == []


def test_a_models_own_tokens_are_refused_where_it_is_at_hand(tmp_path: Path) -> None:
    row = encoded(reordering(1, problem="[EOT]" + reordering()["problem"]))
    source = Source.open(str(write_jsonl(tmp_path / "rows.jsonl", [row])))
    (found,) = read_rows(source.units[0], source.forms[0])
    assert list(problems_of_row(found)) == []
    (problem,) = problems_of_row(found, reserved={"[EOT]"})
    assert problem.startswith("problem: found [EOT], which a model reads as more than text")


def test_fields_are_called_as_the_source_calls_them(tmp_path: Path) -> None:
    row = {"text": "", "key": "B", "frames": 7}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    for keys in (Keys("text", "key", "frames"), TrainerKeys("text", "key", "frames")):
        report = validate(Source.open(str(path), keys=keys), workers=1)
        (found,) = [str(finding) for finding in report.findings]
        assert found == f"{path} row 0: frames: found int, expected a list of images"


def test_many_columns_are_counted_not_listed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({f"column_{i}": i for i in range(100_000)}))
    for keys in (Keys(), TrainerKeys()):
        with pytest.raises(ValueError, match="and 99,980 more") as error:
            Source.open(str(path), keys=keys)
        assert len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.tsv"])
def test_an_endless_line_is_refused_in_bounded_memory(
    name: str, tmp_path: Path, train_on: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpru_verl.data.source.parts._LONGEST_LINE", 2**20)
    rows = "".join(json.dumps(encoded(row)) + "\n" for row in SOUND)
    start = "question\tA\tB\tanswer\timage\n?\tx\ty\tA\tx.png\n" if name.endswith("tsv") else rows
    path = tmp_path / name
    path.write_text(start)
    with path.open("r+b") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match=r"line \d: found over 1,048,576 characters, expected one row"):
        validate(Source.open(str(path)), workers=1)
    if not name.endswith("tsv"):
        with pytest.raises(ValueError, match=r"line 3: found over 1,048,576 characters, expected one row"):
            train_on(path)
