"""Asks a vision-language model at an OpenAI-compatible endpoint to judge and describe clips.

Well-formed answers stay on disk under the hash of the question and its pictures. So no question is asked
twice, even when a build is interrupted, repeated or run with other options.
"""

from __future__ import annotations

import base64
import io
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from tpru_verl.builder.clips import Told, file_of, read_clip, read_images, read_told, told_file
from tpru_verl.builder.tasks import Place, plain_text
from tpru_verl.clients import Address
from tpru_verl.data.images import thumbnail
from tpru_verl.files import write_json
from tpru_verl.terminal import OptionError, needs

if TYPE_CHECKING:
    from openai import OpenAI

MOST_FRAMES = 8  # frames of a clip that the model sees
SIDE = 384  # pixels of the longer side of these pictures
ANSWER_TOKENS = 256
ASKED_AGAIN = 3  # times, when an answer is malformed

_DESCRIPTION = {"description": {"type": "string", "minLength": 1, "maxLength": 240}}


@dataclass(frozen=True)
class ModelQuestion:
    """A question about a clip, and the fields of the JSON object that answers it."""

    name: str
    words: str
    fields: Mapping[str, Mapping[str, object]]

    def read(self, answer: str | None) -> dict[str, object] | None:
        """The fields of the answer, or None when it is malformed."""
        try:
            found = json.loads(answer or "")
        except ValueError:
            return None
        if not isinstance(found, dict) or not found.keys() >= self.fields.keys():
            return None
        types = {"boolean": bool, "string": str}
        sound = all(isinstance(found[name], types[str(form["type"])]) for name, form in self.fields.items())
        full = all(plain_text(value) for value in found.values() if isinstance(value, str))
        return {name: found[name] for name in self.fields} if sound and full else None


QUESTIONS = {
    "judge": ModelQuestion(
        "judge",
        "These images are frames of one sequence, in the order shown. Say whether they are clean (sharp, "
        "nothing but the scene itself: no title cards, clocks, counters or collages) and whether they are in "
        "chronological order, as far as one can see, and whether somebody who gets them shuffled could find "
        "their order: not for waves, crowds, juggling, or motion back and forth.",
        {name: {"type": "boolean"} for name in ("clean", "chronological", "order_visible")},
    ),
    "describe": ModelQuestion(
        "describe",
        "These images are frames of one sequence. Say in one sentence what happens, without naming frames or "
        'their number, such that it continues the words "These photos show".',
        _DESCRIPTION,
    ),
    "contradict": ModelQuestion(
        "contradict",
        "These images are frames of one sequence. Write one sentence that describes another sequence in the "
        "same place with the same things: likely, of the same length and style, but wrong for these images. "
        'It continues the words "These photos show".',
        _DESCRIPTION,
    ),
}


class Describer:
    """Asks a model about clips, `concurrency` at a time. The folder `cache` keeps its answers."""

    def __init__(
        self,
        endpoint: str,
        model: str,
        *,
        cache: Path,
        asked: Sequence[str] = tuple(QUESTIONS),
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
        key: str = "",
    ) -> None:
        """Raises ValueError for an unknown question."""
        if unknown := [name for name in asked if name not in QUESTIONS]:
            raise OptionError(f"--ask: found {unknown[0]!r}, expected {', '.join(QUESTIONS)}")
        self.model, self.cache, self.asked = model, cache, tuple(asked)
        self._address = Address(endpoint, key)
        self.concurrency, self.timeout, self.retries, self._key = concurrency, timeout, retries, key

    @property
    def key(self) -> tuple[object, ...]:
        """Everything beside the clips that decides the answers."""
        return (self.model, [QUESTIONS[name] for name in self.asked])

    def described(self) -> dict[str, object]:
        """For the manifest, without the address of the endpoint, which may be private."""
        return {"model": self.model, "asked": list(self.asked)}

    @cached_property
    def _client(self) -> OpenAI:
        try:
            from openai import DefaultHttpxClient, OpenAI
        except ImportError:
            raise needs("build", "openai", "--endpoint") from None
        try:
            # It waits longer from one try to the next, and as long as a 429 says.
            return OpenAI(
                base_url=self._address.url,
                api_key=self._key or "none",
                timeout=self.timeout,
                max_retries=self.retries,
                http_client=DefaultHttpxClient(**self._address.transport()),
            )
        except (ImportError, ValueError) as error:  # a SOCKS proxy without its package, or no proxy's address
            found, what_to_do = self._address.line(error), self._address.proxy()
            raise ValueError(f"--endpoint {self._address.shown}: {found}; {what_to_do or _KEPT}") from error

    def look_at(
        self, clips: Path, told: Path, places: Sequence[Place]
    ) -> Iterator[tuple[int, dict[int, Told]]]:
        """Ask about the clips at `places`, in order; `told` gets one file for each file of clips.

        Raises ValueError, in one line, when the endpoint does not answer. Earlier answers are kept.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        waiting: deque[tuple[Path, int, dict[int, Future[Told]]]] = deque()
        try:
            for number, members in groupby(places, key=lambda place: place[0]):
                path, source = told_file(told, number), file_of(clips, number)
                new = [] if path.exists() else [clip for _, clip in members]
                waiting.append((path, number, {clip: pool.submit(self._tell, source, clip) for clip in new}))
                while sum(len(futures) for *_, futures in waiting) > 4 * self.concurrency:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _tell(self, path: Path, number: int) -> Told:
        clip = read_clip(path, number)
        places = [round(i * (len(clip) - 1) / (MOST_FRAMES - 1)) for i in range(MOST_FRAMES)]
        pictures = [_small(data) for data in read_images(path, number, sorted(set(places)))]
        about = wrong = ""
        for name in self.asked:
            if name == "describe" and clip.about:
                continue  # the text of the source is more reliable than a model's
            answer = self._ask(QUESTIONS[name], pictures)
            if answer is None:
                return Told(rejected=f"no answer in the form asked for ({name})")
            if missing := [word for word, value in answer.items() if value is False]:
                return Told(rejected=f"not {' and not '.join(missing)}")
            about = str(answer["description"]) if name == "describe" else about
            wrong = str(answer["description"]) if name == "contradict" else wrong
        return Told(about, wrong)

    def _ask(self, question: ModelQuestion, pictures: Sequence[bytes]) -> dict[str, object] | None:
        """The answer, from the disk where it is known; None when the model's answers stay malformed."""
        digest = xxhash.xxh3_128(repr((self.model, question)).encode())
        for picture in pictures:
            digest.update(xxhash.xxh3_128_digest(picture))
        name = digest.hexdigest()
        path = self.cache / name[:2] / f"{name}.json"
        if path.exists() and (kept := question.read(path.read_text(encoding="utf-8"))):
            return kept
        for attempt in range(ASKED_AGAIN):
            answer = question.read(self._answer(question, pictures, temperature=0.7 if attempt else 0.0))
            if answer is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, answer, private=True)
                return answer
        return None

    def _answer(self, question: ModelQuestion, pictures: Sequence[bytes], temperature: float) -> str | None:
        import openai

        schema = {
            "type": "object",
            "properties": question.fields,
            "required": [*question.fields],
            "additionalProperties": False,
        }
        uris = (f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" for picture in pictures)
        content: list = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
        words = (
            f"{question.words} Answer with a JSON object with {' and '.join(question.fields)}, nothing else."
        )
        content.append({"type": "text", "text": words})
        try:
            made = self._client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                temperature=temperature,
                max_tokens=ANSWER_TOKENS,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": question.name, "strict": True, "schema": schema},
                },
            )
        except openai.APIStatusError as error:
            hint = self._address.without_v1() if error.status_code == 404 else ""
            found = f"found status {error.status_code} ({self._address.line(error)[:200]}){hint}"
            raise ValueError(f"--endpoint {self._address.shown}: {found}; {_KEPT}") from error
        except openai.APIConnectionError as error:
            reason = self._address.line(error.__cause__ or error)
            found = f"found no answer after {self.retries + 1} tries ({reason})"
            if proxy := self._address.proxy():
                found += f"; {proxy}"
            raise ValueError(f"--endpoint {self._address.shown}: {found}; {_KEPT}") from error
        except (openai.OpenAIError, json.JSONDecodeError):  # an answer that is no chat completion at all
            return None
        choices = getattr(made, "choices", None)
        return choices[0].message.content if choices else None


def _finished(path: Path, number: int, futures: Mapping[int, Future[Told]]) -> tuple[int, dict[int, Told]]:
    if not path.exists():
        write_json(path, {clip: asdict(future.result()) for clip, future in futures.items()})
    return number, read_told(path)


_KEPT = "what was done is kept: run the same command again"


def _small(data: bytes) -> bytes:
    buffer = io.BytesIO()
    thumbnail(data, SIDE).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
