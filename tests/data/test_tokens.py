"""Token counts without decoding, against the real processors and against veRL's own filter."""

import io
import logging
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytest.importorskip("qwen_vl_utils")
pytest.importorskip("transformers")
from qwen_vl_utils import fetch_image
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from tpru_verl.data import images as images_module
from tpru_verl.data.tokens import text as text_module
from tpru_verl.data.tokens.processors import Conversation, UnsupportedProcessorError, count_image_tokens
from tpru_verl.data.tokens.prompts import COLUMN, KEY_COLUMN, PromptCounter, image_size
from tpru_verl.data.tokens.templates import opens_think
from tpru_verl.data.tokens.text import WORD_PATTERNS
from tpru_verl.prompts import TEMPLATES, render
from tpru_verl.sample import Sample, Task

Bounds = dict[str, int]
ORIENTATION = 0x0112  # EXIF


def encoded(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def photo(rng: random.Random) -> bytes:
    """Some picture as cameras and screens make them."""
    size = (rng.randint(4, 400), rng.randint(4, 400))
    turn = rng.randint(0, 8)
    options: dict[str, object] = {"exif": exif(turn)} if turn else {}
    if rng.random() < 0.5:
        return encoded(size, "JPEG", rng.choice(("RGB", "L")), progressive=turn % 2, **options)
    return encoded(size, "PNG", rng.choice(("RGB", "RGBA", "L", "P", "1")), **options)


def asked(problem: str, images: Sequence[bytes]) -> Sample:
    return Sample(problem, "A", tuple(images), Task.TEMPORAL_REORDERING, "", "", "")


def sample(rng: random.Random, images: Sequence[bytes], words: int = 12) -> Sample:
    text = " ".join(
        rng.choices(("a", "photo", "Straße", "it's", "12", "手", "e\u0301", "I'LL", "...!"), k=words)
    )
    tags = " ".join(f"{i + 1}: <image>" for i in range(len(images)))
    problem = f"{text}\nWhich one?\n{tags}\nA. the left\nB. the right"
    task = rng.choice([None, *Task])
    return Sample(problem, "A", tuple(images), task, "", "", "")  # type: ignore[arg-type]  # None: unrecognised


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(checkpoint)


Make = Callable[..., ProcessorMixin]


@pytest.fixture(scope="module")
def make(tiny: Qwen2_5_VLProcessor) -> Make:
    """A processor of a family, with the pixel bounds of the released models unless told."""

    def build(family: str, tokenizer: PreTrainedTokenizerFast | None = None, **size: int) -> ProcessorMixin:
        old = {"shortest_edge": 3136, "longest_edge": 12845056}
        new = {"shortest_edge": 65536, "longest_edge": 16777216}
        videos = Qwen2VLVideoProcessor(min_pixels=3136, max_pixels=12845056)
        kinds: dict[str, tuple[type, object, object]] = {
            "qwen2": (
                Qwen2VLProcessor,
                Qwen2VLImageProcessor(size=size or old),
                videos,
            ),
            "qwen2.5": (Qwen2_5_VLProcessor, Qwen2VLImageProcessor(size=size or old), tiny.video_processor),
            "qwen2 in PIL": (
                Qwen2VLProcessor,
                Qwen2VLImageProcessorPil(size=size or old),
                tiny.video_processor,
            ),
            "qwen3": (
                Qwen3VLProcessor,
                Qwen2VLImageProcessor(patch_size=16, size=size or new),
                Qwen3VLVideoProcessor(),
            ),
        }
        kind, images, videos_of = kinds[family]
        return kind(
            image_processor=images,
            tokenizer=tokenizer or tiny.tokenizer,
            video_processor=videos_of,
            chat_template=tiny.chat_template,
        )

    return build


FAMILIES = ("qwen2", "qwen2.5", "qwen2 in PIL", "qwen3")
RECIPE = {"min_pixels": 16384, "max_pixels": 36864}
BOUNDS: list[tuple[Bounds, Bounds]] = [  # of the data, told to the processor
    ({}, {}),
    (RECIPE, {}),
    (RECIPE, RECIPE),
    ({"max_pixels": 20000}, {}),
    ({"min_pixels": 50000}, {"min_pixels": 4096, "max_pixels": 30000}),
    ({"min_pixels": 21504, "max_pixels": 48128}, {"min_pixels": 21504, "max_pixels": 48128}),
]


class TestImageTokens:
    SIZES = ((1, 1), (28, 28), (29, 43), (31, 97), (640, 480), (481, 641), (17, 301), (2000, 10), (9, 1800))
    TOO_LONG = ((201, 1), (3, 900))

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(("bounds", "told"), BOUNDS)
    def test_are_those_of_the_real_processor(
        self, make: Make, family: str, bounds: Bounds, told: Bounds
    ) -> None:
        own = make(family).image_processor  # type: ignore[attr-defined]
        rng = random.Random(f"{family}{bounds}{told}")
        some = [(rng.randint(1, 500), rng.randint(1, 500)) for _ in range(8)]
        for width, height in (*self.SIZES, *self.TOO_LONG, *some):

            def real(size: tuple[int, int] = (width, height)) -> int:
                element: dict[str, Any] = {"image": Image.new("RGB", size), **bounds}
                image = fetch_image(element, image_patch_size=own.patch_size)
                return int(own(images=[image], **told)["image_grid_thw"].prod()) // own.merge_size**2

            def ours(size: tuple[int, int] = (width, height)) -> int:
                return count_image_tokens(*size, own, pixel_bounds=bounds, processor_kwargs=told)

            try:
                expected = real()
            except ValueError:
                with pytest.raises(ValueError, match=r"aspect ratio|expected sides"):
                    ours()
            else:
                assert ours() == expected, (width, height)

    @pytest.mark.parametrize(
        "told", [{"max_pixels": 4096}, {"min_pixels": 4096, "max_pixels": None}, {"size": {}}]
    )
    def test_other_settings_of_the_processor_are_refused(self, make: Make, told: dict[str, object]) -> None:
        with pytest.raises(UnsupportedProcessorError, match="expected min_pixels, max_pixels"):
            PromptCounter(make("qwen2.5"), processor_kwargs=told)


class TestImageSize:
    def test_is_the_stored_one_whatever_the_format_and_orientation(self) -> None:
        size = (67, 31)
        files = [encoded(size, "JPEG", mode) for mode in ("RGB", "L", "CMYK")]
        files += [encoded(size, "JPEG", exif=exif(i), progressive=True) for i in range(1, 9)]
        files += [
            encoded(size, "PNG", mode, exif=exif(6)) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")
        ]
        files += [encoded(size, kind) for kind in ("WEBP", "GIF", "BMP")]
        for data in files:
            assert (
                image_size(data) == image_size(memoryview(data)) == Image.open(io.BytesIO(data)).size == size
            )

    def test_of_plain_files_asks_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images_module, "_ask_pillow", lambda data: pytest.fail("decoded"))
        rng = random.Random(0)
        for _ in range(20):
            size = (rng.randint(1, 3000), rng.randint(1, 40))
            assert image_size(encoded(size, "JPEG", exif=exif(6))) == size
            assert image_size(encoded(size, "PNG", "RGBA")) == size

    def test_is_not_that_of_the_thumbnail_inside(self) -> None:
        thumbnail, data = encoded((16, 12), "JPEG"), encoded((160, 120), "JPEG")
        segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
        assert image_size(data[:2] + segment + data[2:]) == (160, 120)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
    def test_of_half_a_file_is_none(self, kind: str) -> None:
        buffer = io.BytesIO()
        Image.effect_noise((90, 90), 90).convert("RGB").save(buffer, kind)
        data = buffer.getvalue()
        with pytest.raises(ValueError, match=r"found an image that can't be decoded|no image reader"):
            image_size(data[: len(data) // 2])
        for nothing in (b"", b"\xff\xd8\xff", b"no image at all", data[:5]):
            with pytest.raises(ValueError, match="found"):
                image_size(nothing)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG"])
    def test_of_a_damaged_header_is_pillows_or_none(self, kind: str) -> None:
        whole, rng = encoded((97, 45), kind, exif=exif(3)), random.Random(1)
        for _ in range(300):
            data = bytearray(whole)
            data[rng.randrange(len(data))] = rng.randrange(256)
            try:
                found = image_size(bytes(data))
            except ValueError:
                continue
            try:
                expected = Image.open(io.BytesIO(data)).size
            except (OSError, SyntaxError):
                continue  # damaged elsewhere than where the size stands
            assert found == expected


SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
TRICKY = (
    "a",
    "Word",
    "\u017f",
    "é",
    "e\u0301",
    "\u0301",
    "手",
    "1",
    "23",
    "'s",
    "'LL",
    "?",
    "...",
    "\n",
    "\n\n",
    "\r\n",
)
TRICKY += (
    " ",
    "  ",
    "\t",
    "\u2028",
    "\x1c",
    "\xa0",
    "\u180e",
    "<think>",
    "</think>",
    "<|im_end|>",
    "<",
    "A. ",
    " the",
)


def trained(splitter: pre_tokenizers.PreTokenizer, **added: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges across whatever the splitter leaves together."""
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()  # type: ignore[assignment]
    bpe.pre_tokenizer = splitter  # type: ignore[assignment]
    rng = random.Random(0)
    texts = ["".join(rng.choices(TRICKY, k=30)) for _ in range(400)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    )
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    bpe.add_tokens([AddedToken(token, normalized=False, **added) for token in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def splitting(pattern: str) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


class TestText:
    @pytest.mark.parametrize("pattern", WORD_PATTERNS)
    def test_cut_into_lines_and_words_it_has_the_tokens_of_the_whole(self, make: Make, pattern: str) -> None:
        tokenizer = trained(splitting(pattern))
        assert text_module._may_be_cut(tokenizer.backend_tokenizer, "<|image_pad|>")
        self.same(make, tokenizer)

    def test_of_another_tokenizer_is_not_cut(self, make: Make) -> None:
        gpt = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
        strips = trained(splitting(WORD_PATTERNS[0]), rstrip=True)
        for tokenizer in (gpt, strips):
            assert not text_module._may_be_cut(tokenizer.backend_tokenizer, "<|image_pad|>")
            self.same(make, tokenizer)

    def same(self, make: Make, tokenizer: PreTrainedTokenizerFast) -> None:
        counter = PromptCounter(make("qwen2.5", tokenizer))
        rng = random.Random(2)
        texts = ["".join(rng.choices(TRICKY, k=rng.randint(1, 40))) for _ in range(1500)]
        chats: list[Conversation] = [[{"role": "user", "content": text}] for text in texts]
        whole = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in texts]
        assert counter.tokens(chats, [()] * len(texts)) == [len(ids) for ids in tokenizer(whole)["input_ids"]]

    def test_what_the_tokenizer_was_told_before_does_not_matter(self, make: Make, checkpoint: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        before = PromptCounter(make("qwen2.5", tokenizer))
        tokenizer(["a long text " * 9, "b"], truncation=True, max_length=4, padding=True)
        after = PromptCounter(make("qwen2.5", tokenizer))
        row = sample(random.Random(0), [encoded((50, 50))], words=80)
        assert before.key == after.key
        assert before.count([row]) == after.count([row])


def whole_count(
    processor: Any, row: Sample, template: str, bounds: Bounds, told: Mapping[str, object]
) -> int:
    """As veRL counts: messages, qwen_vl_utils, then the whole processor."""
    parts: list[dict[str, object]] = []
    images = [Image.open(io.BytesIO(data)) for data in row.images]
    for i, text in enumerate(render(row.problem, row.task, template).split("<image>")):
        if i:
            parts.append({"type": "image", "image": ""})
        if text:
            parts.append({"type": "text", "text": text})
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    patch = processor.image_processor.patch_size
    resized = [fetch_image({"image": image, **bounds}, image_patch_size=patch) for image in images]  # type: ignore[dict-item]
    return len(processor(text=[text], images=resized, **told)["input_ids"][0])


class TestPrompts:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(("bounds", "told"), [BOUNDS[1], BOUNDS[2], BOUNDS[4]])
    def test_have_the_tokens_of_the_whole_processor(
        self, make: Make, family: str, bounds: Bounds, told: Bounds
    ) -> None:
        processor, rng = make(family), random.Random(f"{family}{bounds}")
        for template in TEMPLATES:
            counter = PromptCounter(processor, template, bounds, processor_kwargs=told)
            rows = [sample(rng, [photo(rng) for _ in range(rng.randint(1, 4))]) for _ in range(3)]
            expected = [whole_count(processor, row, template, bounds, told) for row in rows]
            assert counter.count(rows) == expected

    def test_of_a_template_that_looks_at_the_text(self, make: Make) -> None:
        processor = make("qwen3")
        processor.chat_template = (
            "{% macro show(content) %}{% for part in content %}{% if part.type == 'image' %}"
            "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
            "{% endmacro %}{% for message in messages %}{% set text = show(message.content) | trim %}"
            "{{ 'Long. ' if text | length > 500 }}{{ text }}{% endfor %}"
        )
        rng = random.Random(0)
        rows = [sample(rng, [photo(rng)], words) for words in (1, 90)]
        expected = [whole_count(processor, row, "bare", RECIPE, RECIPE) for row in rows]
        assert PromptCounter(processor, "bare", RECIPE, processor_kwargs=RECIPE).count(rows) == expected

    def test_that_have_no_count_are_named(self, make: Make) -> None:
        counter = PromptCounter(make("qwen2.5"), "bare", RECIPE)
        good, cut = sample(random.Random(0), [encoded((50, 50))]), encoded((50, 50), "JPEG")[:-40]
        for problem, images, reason in (
            ("<image>", [cut], r"row 1: images\[0\]: found an image that can't be decoded"),
            ("<image> <image>", [encoded((50, 50))], "row 1: images: found 1, expected 2"),
            ("<image> <|image_pad|>", [encoded((50, 50))], "row 1: images: found 1, expected 2"),
            (
                "<image> <video>",
                [encoded((50, 50))],
                "row 1: problem: found <video>, expected no tag but <image>",
            ),
            ("<image>", [encoded((900, 3))], "row 1: absolute aspect ratio"),
        ):
            with pytest.raises(ValueError, match=reason):
                counter.count([good, asked(problem, images)])
        assert counter.count([]) == []

    def test_of_a_chat_template_that_raises_do_not_spoil_the_others(self, make: Make) -> None:
        processor = make("qwen2.5")
        processor.chat_template = str(processor.chat_template) + (
            "{% if 'bad' in messages[0].content | string %}{{ raise_exception('no bad words') }}{% endif %}"
        )
        counter = PromptCounter(processor, "bare")
        chats: list[Conversation] = [[{"role": "user", "content": text}] for text in ("a", "bad", "a")]
        first, error, last = counter.tokens(chats, [(), (), ()])
        assert first == last
        assert "no bad words" in str(error)


class TestUnsupported:
    def test_processor_of_another_kind_is_refused(self, make: Make) -> None:
        class Mine(Qwen2_5_VLProcessor):
            pass

        known = make("qwen2.5")
        known.__class__ = Mine
        with pytest.raises(UnsupportedProcessorError, match="found Mine, expected Qwen2VLProcessor"):
            PromptCounter(known)

    def test_processor_that_counts_otherwise_is_refused(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        processor = make("qwen2.5")
        call = type(processor).__call__

        def with_a_token_more(self: ProcessorMixin, *args: Any, **kwargs: Any) -> Any:
            made = call(self, *args, **kwargs)
            return {**made, "input_ids": [[*ids, 0] for ids in made["input_ids"]]}

        monkeypatch.setattr(type(processor), "__call__", with_a_token_more)
        with pytest.raises(UnsupportedProcessorError, match=r"found \d+ tokens of a sample, expected \d+"):
            PromptCounter(processor)

    def test_processor_that_does_not_resize_is_refused(self, make: Make) -> None:
        processor = make("qwen2.5")
        processor.image_processor.do_resize = False  # type: ignore[attr-defined]
        with pytest.raises(UnsupportedProcessorError, match="do_resize: found False"):
            PromptCounter(processor)


class TestKey:
    def test_changes_with_all_that_changes_counts(self, make: Make, tmp_path: Path) -> None:
        plain = make("qwen2.5")
        template = tmp_path / "mine.jinja"
        template.write_text("{{ content }}")
        keys = [
            PromptCounter(plain, "bare").key,
            PromptCounter(plain, "tpru").key,
            PromptCounter(plain, str(template)).key,
            PromptCounter(plain, "bare", RECIPE).key,
            PromptCounter(
                plain, "bare", RECIPE, processor_kwargs={"min_pixels": 3136, "max_pixels": 9999}
            ).key,
            PromptCounter(plain, "bare", chat_kwargs={"tools": [{"name": "zoom"}]}).key,
            PromptCounter(make("qwen3"), "bare").key,
            PromptCounter(make("qwen2.5", shortest_edge=20000, longest_edge=90000), "bare").key,
            PromptCounter(make("qwen2.5", trained(splitting(WORD_PATTERNS[0]))), "bare").key,
        ]
        template.write_text("{{ content }}!")
        keys.append(PromptCounter(plain, str(template)).key)
        other = make("qwen2.5")
        other.chat_template = str(plain.chat_template) + " "
        keys.append(PromptCounter(other, "bare").key)
        assert len(set(keys)) == len(keys)

    def test_is_the_same_in_another_process(self, checkpoint: Path) -> None:
        code = (
            "from transformers import AutoProcessor\n"
            "from tpru_verl.data.tokens.prompts import PromptCounter\n"
            f"print(PromptCounter(AutoProcessor.from_pretrained({str(checkpoint)!r})).key)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == PromptCounter(AutoProcessor.from_pretrained(checkpoint)).key


class TestOpensThink:
    @pytest.mark.parametrize(
        ("end", "kwargs", "opens"),
        [
            ("", {}, False),
            ("<think>\n", {}, True),
            ("<think>\n\n</think>\n\n", {}, False),
            ("{% if think %}<think>\n{% else %}<think>\n\n</think>\n{% endif %}", {"think": True}, True),
            ("{% if think %}<think>\n{% else %}<think>\n\n</think>\n{% endif %}", {"think": False}, False),
        ],
    )
    def test_is_told_by_the_end_of_a_prompt(
        self, make: Make, end: str, kwargs: dict[str, object], opens: bool
    ) -> None:
        for family in ("qwen2.5", "qwen3"):
            processor = make(family)
            processor.chat_template = f"{processor.chat_template}{end}"
            assert opens_think(processor, **kwargs) is opens  # type: ignore[arg-type]


def test_importing_brings_nothing_heavy() -> None:
    heavy = "{'torch', 'transformers', 'verl'}"
    code = f"import sys, tpru_verl.data.tokens.prompts; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


# From here on through veRL's trainer's own classes.
Row = dict[str, Any]
Build = Callable[..., Any]


def row_of(row: Sample, **changes: object) -> Row:
    """A row that ours and veRL's read; for veRL the prompt is rendered and the images hold their bounds."""
    return {
        "problem": row.problem,
        "answer": row.answer,
        "task": row.task.value if row.task else None,
        "images": [{"bytes": data, **RECIPE} for data in row.images],
        "data_source": "tpru",
        "prompt": [{"role": "user", "content": render(row.problem, row.task)}],
        "reward_model": {"style": "rule", "ground_truth": row.answer},
        **changes,
    }


def write(path: Path, rows: Sequence[Row]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=7)
    return path


@pytest.fixture
def load(make: Make, tiny: Qwen2_5_VLProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """One of the two data sets: `load(TPRUDataset, file, ...)`."""
    pytest.importorskip("verl")
    from omegaconf import OmegaConf

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def build(kind: type, file: Path, processor: ProcessorMixin | None = None, **changes: object) -> Any:
        settings = {
            "prompt_key": "prompt",
            "image_key": "images",
            "max_prompt_length": 4096,
            "filter_overlong_prompts": True,
            "filter_overlong_prompts_workers": None,
            **RECIPE,
            **changes,
        }
        return kind(str(file), tiny.tokenizer, OmegaConf.create(settings), processor or make("qwen2.5"))

    return build


def texts(data: Any) -> list[str]:
    return list(data.dataframe["problem"])


class TestFilter:
    @pytest.fixture
    def rows(self) -> list[Sample]:
        rng = random.Random(3)
        return [
            sample(rng, [photo(rng) for _ in range(rng.randint(1, 5))], rng.randint(1, 60)) for _ in range(30)
        ]

    @pytest.mark.parametrize(("family", "told"), [("qwen2.5", {}), ("qwen3", RECIPE)])
    def test_keeps_the_rows_that_verls_keeps(
        self, make: Make, load: Build, rows: list[Sample], tmp_path: Path, family: str, told: Bounds
    ) -> None:
        from verl.utils.dataset.rl_dataset import RLHFDataset

        from tpru_verl.plugin.dataset import TPRUDataset

        processor = make(family)
        counts = PromptCounter(processor, "tpru", RECIPE, processor_kwargs=told).count(rows)
        file = write(tmp_path / "rows.parquet", [row_of(row) for row in rows])
        verls = write(
            tmp_path / "verl.parquet", [{k: v for k, v in row_of(r).items() if k != "task"} for r in rows]
        )
        for limit in (sorted(counts)[9], sorted(counts)[20] - 1):
            settings = {"max_prompt_length": limit, "mm_processor_kwargs": told}
            expected = texts(load(RLHFDataset, file, processor, **settings))
            assert 0 < len(expected) < len(rows)
            assert expected == [row.problem for row, n in zip(rows, counts, strict=True) if n <= limit]
            assert texts(load(TPRUDataset, file, processor, **settings)) == expected
            prompts = load(TPRUDataset, verls, processor, problem_key="none", **settings)
            assert [p[0]["content"] for p in prompts.dataframe["prompt"]] == [
                render(row.problem, row.task) for row in rows if row.problem in expected
            ]

    def test_does_not_decode_and_holds_few_rows(
        self, load: Build, rows: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tpru_verl.plugin import prompt_lengths
        from tpru_verl.plugin.dataset import TPRUDataset

        monkeypatch.setattr(prompt_lengths, "_measure", lambda *_, **__: pytest.fail("whole processor"))
        assert len(load(TPRUDataset, write(tmp_path / "rows.parquet", [row_of(r) for r in rows * 5]))) == 150

    def test_reports_a_row_that_raises_where_verl_drops_it(
        self, load: Build, rows: list[Sample], tmp_path: Path
    ) -> None:
        from verl.utils.dataset.rl_dataset import RLHFDataset

        from tpru_verl.plugin.dataset import TPRUDataset

        bad = asked("<image> <|image_pad|> A. 1 2 B. 2 1", rows[0].images[:1])
        file = write(tmp_path / "rows.parquet", [row_of(row) for row in (*rows[:3], bad, *rows[3:6])])
        good = [row.problem for row in rows[:6]]
        assert texts(load(RLHFDataset, file)) == good
        reason = r"(?s)1 of 7 rows are broken.*rows.parquet row 3: problem: found <\|image_pad\|>"
        with pytest.raises(ValueError, match=reason):
            load(TPRUDataset, file)
        assert texts(load(TPRUDataset, file, on_invalid="skip")) == good

    def test_falls_back_to_the_whole_processor_and_says_so(
        self, make: Make, load: Build, rows: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        from tpru_verl.plugin.dataset import TPRUDataset

        class Mine(Qwen2_5_VLProcessor):
            pass

        unknown = make("qwen2.5")
        counts = PromptCounter(unknown, "tpru", RECIPE).count(rows)
        unknown.__class__ = Mine
        limit = sorted(counts)[15]
        file = write(tmp_path / "rows.parquet", [row_of(row) for row in rows])
        data = load(TPRUDataset, file, unknown, max_prompt_length=limit)
        assert texts(data) == [row.problem for row, n in zip(rows, counts, strict=True) if n <= limit]
        assert "counted by the whole processor, some 30 rows a second: processor: found Mine" in caplog.text


class TestStored:
    def rows(self, key: str | None, tokens: int | None) -> list[Row]:
        rng = random.Random(4)
        rows = [sample(rng, [encoded((300, 200), "JPEG")]) for _ in range(5)]
        return [row_of(row, **{COLUMN: tokens, KEY_COLUMN: key}) for row in rows]

    @pytest.fixture
    def key(self, make: Make) -> str:
        return PromptCounter(make("qwen2.5"), "tpru", RECIPE).key

    def test_counts_are_used_without_a_look_at_images(
        self, load: Build, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tpru_verl.plugin import prompt_lengths
        from tpru_verl.plugin.dataset import TPRUDataset

        monkeypatch.setattr(prompt_lengths, "_asked", lambda *_: pytest.fail("looked"))
        file = write(tmp_path / "rows.parquet", self.rows(key, 3))  # far fewer than there are
        assert len(load(TPRUDataset, file, max_prompt_length=3)) == 5
        with pytest.raises(ValueError, match="found 3 to 3 tokens in all 5 rows"):
            load(TPRUDataset, file, max_prompt_length=2)

    def test_counts_for_something_else_are_made_anew(
        self, load: Build, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        from tpru_verl.plugin.dataset import TPRUDataset

        rows = [*self.rows(key, 3)[:2], *self.rows("of another model", 3)[2:3], *self.rows(None, None)[3:]]
        file = write(tmp_path / "rows.parquet", rows)
        assert len(load(TPRUDataset, file, max_prompt_length=3)) == 2
        (line,) = [record.message for record in caplog.records if COLUMN in record.message]
        assert line.startswith("prompt_tokens of 1 of 5 rows was counted for another model or other settings")
        caplog.clear()
        with pytest.raises(ValueError, match="none fits"):
            load(TPRUDataset, file, max_prompt_length=3, prompt_template="bare")
        assert "prompt_tokens of 3 of 5 rows" in caplog.text

    def test_no_stored_count_is_trusted_without_a_key(self, load: Build, tmp_path: Path) -> None:
        from tpru_verl.plugin.dataset import TPRUDataset

        rows = [{k: v for k, v in row.items() if k != KEY_COLUMN} for row in self.rows("", 3)]
        with pytest.raises(ValueError, match="none fits"):
            load(TPRUDataset, write(tmp_path / "rows.parquet", rows), max_prompt_length=3)

    def test_files_with_and_without_counts_go_together(self, load: Build, key: str, tmp_path: Path) -> None:
        from tpru_verl.plugin.dataset import TPRUDataset

        folder = tmp_path / "rows"
        folder.mkdir()
        write(folder / "a.parquet", self.rows(key, 3))
        plain = [{k: v for k, v in r.items() if k not in (COLUMN, KEY_COLUMN)} for r in self.rows(None, 3)]
        write(folder / "b.parquet", plain)
        assert len(load(TPRUDataset, folder, max_prompt_length=3)) == 5

    def test_counting_writes_no_line_where_nothing_is_amiss(
        self, load: Build, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        from tpru_verl.plugin.dataset import TPRUDataset

        with caplog.at_level(logging.WARNING):
            load(TPRUDataset, write(tmp_path / "rows.parquet", self.rows(key, 3)))
            load(TPRUDataset, write(tmp_path / "more.parquet", self.rows(None, None)))
        assert not [record for record in caplog.records if "count" in record.message]
