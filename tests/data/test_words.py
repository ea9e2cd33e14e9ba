"""A tokenizer that spells the words of rows is told from one that knows them."""

from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tpru_verl.data.tokens.words import spelled_words
from tpru_verl.demo.scenes import make_rows

REAL = [
    "These photos show a robot arm that puts a red LEGO brick on a tower. <image><image> What order?",
    "手机屏幕显示设置列表 然后打开蓝牙。<image>",
]


def test_the_demos_tokenizer_knows_the_demos_rows(checkpoint: Path) -> None:
    assert spelled_words(str(checkpoint), [row.problem for row in make_rows(60, seed=1)]) == ""


@pytest.mark.parametrize("text", REAL)
def test_the_demos_tokenizer_spells_other_rows(checkpoint: Path, text: str) -> None:
    assert "of the words of the rows and spells them out" in spelled_words(str(checkpoint), [text])


def test_a_tokenizer_that_learned_the_words_knows_them(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text.replace("<image>", "") for text in REAL] * 3, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    for text in REAL:
        assert spelled_words(str(tmp_path), [text]) == ""


def test_what_cannot_be_told_is_no_warning(checkpoint: Path) -> None:
    assert spelled_words("Qwen/Qwen2.5-VL-7B-Instruct", REAL) == ""
    assert spelled_words(str(checkpoint), ["<image> 1 2 3"]) == ""
