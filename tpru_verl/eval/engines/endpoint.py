"""An OpenAI-compatible endpoint as engine: many requests at once, repeated with growing pauses."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpru_verl.clients import Address
from tpru_verl.data.tokens.pixels import Bounds, png
from tpru_verl.eval.decide import (
    GUIDED,
    SCORE,
    SPACE,
    Fork,
    ToldScores,
    best_told,
    filled,
    forks_of,
    steps_of,
    told_apart,
)
from tpru_verl.eval.engines.base import Request, Sampling, parts_of, prepared_images
from tpru_verl.eval.store import Reply, digest_of
from tpru_verl.files import write_json
from tpru_verl.redaction import redact_options
from tpru_verl.sample import IMAGE_TAG
from tpru_verl.terminal import line_of, needs

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TOP = 20  # the most that OpenAI's API and vLLM give of the likeliest tokens
NEVER = -9999.0  # vLLM's log-probability of a token that may not follow
FAILURES_IN_A_ROW = 20  # requests that fail one after another: the server is broken, not the rows


class Endpoint:
    """Answers by POST /chat/completions, `concurrency` requests at a time.

    The `openai` client repeats a request up to `retries` times after 429, 5xx, a time-out or a lost
    connection, with pauses that grow or that the server names. A lost server ends the run. A refused request
    fails its row. `extra` goes into the body of each request.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        bounds: Bounds,
        sampling: Sampling,
        *,
        concurrency: int = 32,
        timeout: float = 600.0,
        retries: int = 6,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        self.model, self.bounds, self.sampling = model, bounds, sampling
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.extra = dict(extra or {})
        self.address = Address(base_url, self.extra, os.environ.get("OPENAI_API_KEY", ""))
        self.shown_url = self.address.shown  # what messages and results say
        self.identity = f"endpoint:{self.shown_url}:{model}:{digest_of(self.extra) if self.extra else []}"
        self._checked = self._identified = False

    def description(self) -> dict[str, object]:
        return {"engine": "endpoint", "base_url": self.shown_url, "options": redact_options(self.extra)}

    def identify(self, kept: Path) -> None:
        """Add the weights behind the model's name to `identity`, where the server names them (`root`).

        `kept` has the last roots: stored answers are found without their server, too. A server that does not
        answer is found out by `start`, if there is something to ask.
        """
        if self._identified:
            return
        root, roots, name = "", _kept(kept), f"{self.shown_url} {self.model}"
        try:
            root = asyncio.run(self._check())
            self._checked = True
            if roots.get(name, "") != root:
                write_json(kept, {**roots, name: root})
        except ConnectionError:
            root = roots.get(name, "")
        except ValueError:
            pass
        self._identified = True
        self.identity += f":{root}" if root not in ("", self.model) else ""

    def start(self, requests: Sequence[Request]) -> None:
        """Check that the server answers and has the model. Raises ConnectionError, ValueError."""
        if requests and not self._checked:
            asyncio.run(self._check())
            self._checked = True

    async def _check(self) -> str:
        """The `root` of the model on the server: a path or a Hub id; "" where it gives none."""
        async with self._client(retries=1) as client:
            import openai

            try:
                roots = {model.id: _root_of(model) async for model in client.models.list()}
            except openai.APIConnectionError as error:
                raise ConnectionError(
                    f"{self.shown_url}: no answer ({self.address.line(error.__cause__ or error)}); "
                    f"{self.address.proxy() or 'is the server running?'}"
                ) from error
            except openai.AuthenticationError as error:
                raise ValueError(
                    f"{self.shown_url}: {self._said(error)}; expected a key in OPENAI_API_KEY"
                ) from error
            except (openai.OpenAIError, ValueError, TypeError, RecursionError):
                return ""  # some servers do not list their models; the first request will show
        if roots and self.model not in roots:
            raise ValueError(
                f"{self.shown_url}: found models {', '.join([*roots][:8])}; expected {self.model}"
            )
        return roots.get(self.model, "")

    def _client(self, retries: int | None = None) -> AsyncOpenAI:
        try:
            from openai import AsyncOpenAI, DefaultAsyncHttpxClient
        except ImportError as error:
            raise needs("eval", "openai", "--base-url") from error
        try:
            return AsyncOpenAI(
                base_url=self.address.url,
                api_key=os.environ.get("OPENAI_API_KEY") or "none",
                timeout=self.timeout,
                max_retries=self.retries if retries is None else retries,
                http_client=DefaultAsyncHttpxClient(**self.address.transport()),
            )
        except (ImportError, ValueError) as error:  # a SOCKS proxy without its package, or no proxy's address
            what_to_do = self.address.proxy() or "--base-url"
            raise ValueError(f"{self.shown_url}: {self.address.line(error)}; {what_to_do}") from error

    def _said(self, error: Exception) -> str:
        """The server's own words, if it had some, without secrets."""
        body = getattr(error, "body", None)
        message = body.get("message") if isinstance(body, dict) else None
        status = getattr(error, "status_code", None)
        words = self.address.line(Exception(message) if message else error)
        return f"{f'HTTP {status}: ' if status else ''}{words}"[:500]

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Reply]]:
        """Replies in the order in which they come.

        The requests run in a thread of their own. A signal interrupts the wait of this thread, never the
        event loop, so that the requests can be ended.
        """
        self.start(requests)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        replies = self._answers(requests)

        async def following() -> tuple[Request, Reply] | None:
            return await anext(replies, None)

        try:
            while (pair := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not None:
                yield pair
        finally:
            asyncio.run_coroutine_threadsafe(_end_tasks(replies), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def close(self) -> None:
        """Nothing stays open between two calls of `answer`."""

    async def _answers(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[Request, Reply], None]:
        todo, failures = iter(requests), 0
        running: set[asyncio.Task[tuple[Request, Reply]]] = set()
        done: set[asyncio.Task[tuple[Request, Reply]]] = set()
        async with self._client() as client:
            try:
                while True:
                    while len(running) < self.concurrency and (request := next(todo, None)) is not None:
                        running.add(asyncio.create_task(self._one(client, request)))
                    if not running:
                        return
                    done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        request, reply = task.result()
                        failures = failures + 1 if reply.error else 0
                        if failures >= FAILURES_IN_A_ROW:
                            raise RuntimeError(
                                f"{self.shown_url}: {failures} requests failed one after another, the last: "
                                f"{reply.error}; all answers are kept: run the same command again to continue"
                            )
                        yield request, reply
            finally:
                for task in running:
                    task.cancel()
                # Those that are done, too: asyncio prints the traceback of an error that nobody asked for.
                await asyncio.gather(*running, *done, return_exceptions=True)

    async def _one(self, client: AsyncOpenAI, request: Request) -> tuple[Request, Reply]:
        import openai

        try:
            content = await asyncio.to_thread(content_of, request, self.bounds)
        except ValueError as error:
            return request, Reply(error=line_of(error))
        asked = self._scored if request.decide == SCORE else self._written
        try:
            return request, await asked(client, request, content)
        except openai.APITimeoutError:
            return request, Reply(error=f"no answer within {self.timeout:g} s, {self.retries + 1} times")
        except openai.APIConnectionError as error:
            raise ConnectionError(
                f"{self.shown_url}: the server stopped answering "
                f"({self.address.line(error.__cause__ or error)}); all answers are kept: run the same "
                "command again to continue"
            ) from error
        except openai.NotFoundError as error:
            hint = self.address.without_v1()
            raise ValueError(f"{self.shown_url}: {self.model}: {self._said(error)}{hint}") from error
        except openai.AuthenticationError as error:
            raise ValueError(
                f"{self.shown_url}: {self._said(error)}; expected a key in OPENAI_API_KEY"
            ) from error
        except openai.OpenAIError as error:
            return request, Reply(error=self._said(error))
        except (json.JSONDecodeError, RecursionError) as error:
            return request, Reply(error=f"found an answer that is no completion: {line_of(error)}")
        except ValueError as error:
            return request, Reply(error=self.address.line(error))

    async def _written(self, client: AsyncOpenAI, request: Request, content: list[dict[str, Any]]) -> Reply:
        """What the model writes: one of `candidates` if it is guided. Raises as the client, ValueError."""
        sampling = self.sampling
        guided = _guided(request.candidates) if request.decide == GUIDED else {}
        found = await client.chat.completions.create(
            model=self.model,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            n=sampling.n,
            stop=[request.stop] if request.stop else None,
            seed=int(request.key[:7], 16) if sampling.temperature else None,
            **self._begun(content, request.opening, guided),
        )
        return reply_of(found, sampling.n)

    async def _scored(self, client: AsyncOpenAI, request: Request, content: list[dict[str, Any]]) -> Reply:
        """The scores of all candidates. Raises as `_written`.

        One request for each place where they part, and a guided one where a list has not all that may follow.
        """
        import openai

        paths = {candidate: steps_of(candidate) for candidate in request.candidates}
        forks = forks_of([*paths.values()])
        told, prompt, tokens = {}, 0, 0

        async def likeliest(fork: Fork, extra: Mapping[str, object]) -> ToldScores:
            nonlocal prompt, tokens
            reply = await client.chat.completions.create(
                model=self.model,
                temperature=0,
                max_tokens=2 if fork.following[0].startswith(SPACE) else 1,
                logprobs=True,
                top_logprobs=TOP,
                **self._begun(content, request.opening + "".join(fork.path), extra),
            )
            prompt += _count(reply.usage, "prompt_tokens")
            tokens += _count(reply.usage, "completion_tokens")
            return told_apart(tops_of(reply), fork.following)

        for fork in forks:
            found = await likeliest(fork, {})
            if len(found.listed) < len(fork.following):
                with suppress(openai.BadRequestError):  # servers other than vLLM may not know the field
                    guided = await likeliest(fork, _guided(fork.following))
                    found = filled(found, guided, alone=len(forks) == 1)
            told[fork.path] = found
        best, scores, exact = best_told(paths, told)
        return Reply([best], [SCORE], prompt, tokens, scores, exact)

    def _begun(self, content: list[dict[str, Any]], opening: str, extra: Mapping[str, object]) -> Any:
        """Messages and body of a request whose response begins with `opening`, as vLLM and SGLang take it."""
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        body = {**self.extra, **extra}
        if opening:
            messages.append({"role": "assistant", "content": opening})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return {"messages": messages, "extra_body": body or None}


def _guided(answers: Sequence[str]) -> dict[str, object]:
    """The field of vLLM's requests that lets a model write one of these and nothing else."""
    return {"structured_outputs": {"choice": [*answers]}}


def _kept(path: Path) -> dict[str, str]:
    """The root of each server and model, as an earlier call wrote them; none from a file that is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return (
        {name: root for name, root in found.items() if isinstance(root, str)}
        if isinstance(found, dict)
        else {}
    )


def _root_of(model: object) -> str:
    """Where a listed model comes from, as vLLM and SGLang say it; "" for other servers."""
    root = getattr(model, "root", None)
    return root if isinstance(root, str) else ""


async def _end_tasks(replies: AsyncGenerator[object, None]) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await replies.aclose()
    await asyncio.get_running_loop().shutdown_default_executor()


def content_of(request: Request, bounds: Bounds) -> list[dict[str, Any]]:
    """The message's content: text, and images as PNG where their tags are. Raises ValueError."""
    images = iter(prepared_images(request.item, bounds))
    return [
        {"type": "image_url", "image_url": {"url": data_url(png(next(images)))}}
        if part == IMAGE_TAG
        else {"type": "text", "text": part}
        for part in parts_of(request.prompt)
    ]


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def tops_of(found: Any) -> list[dict[str, float]]:
    """The likeliest tokens of each position of a completion, with their log-probabilities; [] for none."""
    choice = next(iter(getattr(found, "choices", None) or ()), None)
    positions = getattr(getattr(choice, "logprobs", None), "content", None) or ()
    return [
        {top.token: top.logprob for top in position.top_logprobs or () if top.logprob > NEVER}
        for position in positions
    ]


def reply_of(found: Any, n: int) -> Reply:
    """The reply in a completion of `n` choices.

    Servers differ. `content` is text, null, or a list of parts (Mistral's reasoning models). Reasoning is a
    part of the type `thinking` or `reasoning`, or a field of its own (vLLM's and SGLang's reasoning parsers).
    It comes back as `<think>...</think>` in front of the text.

    Raises ValueError for a completion without text.
    """
    choices = getattr(found, "choices", None)
    if not isinstance(choices, list) or len(choices) != n:
        said = getattr(found, "error", None)  # of servers that answer 200 when they fail
        words = said.get("message") if isinstance(said, Mapping) else said
        found_none = f"found {len(choices) if isinstance(choices, list) else 0} choices, expected {n}"
        raise ValueError(f"{found_none}: {words}"[:500] if words else found_none)
    usage = getattr(found, "usage", None)
    return Reply(
        [_text_of(getattr(choice, "message", None)) for choice in choices],
        [str(getattr(choice, "finish_reason", None)) for choice in choices],
        _count(usage, "prompt_tokens"),
        _count(usage, "completion_tokens"),
    )


def _text_of(message: Any) -> str:
    content = getattr(message, "content", None)
    reasoning, text = ("", "") if content is None else _split(content)
    for name in ("reasoning_content", "reasoning"):
        value = getattr(message, name, None)
        if not reasoning and value is not None:
            reasoning = "".join(_split(value))
    if content is None and not reasoning:
        raise ValueError("found a choice without content, expected text")
    return f"<think>{reasoning}</think>{text}" if reasoning else text


def _split(content: object) -> tuple[str, str]:
    """Reasoning and text of a content: text, a part, or a list of both.

    Raises ValueError for any other form: as an empty text it would count as a wrong answer.
    """
    if isinstance(content, str):
        return "", content
    if isinstance(content, list):
        pairs = [_split(part) for part in content]
        return "".join(reasoning for reasoning, _ in pairs), "".join(text for _, text in pairs)
    part = content if isinstance(content, Mapping) else {}
    kind = part.get("type", "text" if "text" in part else None)
    if kind in ("text", "output_text"):
        text = part.get("text")
        # As the Assistants API of OpenAI nests it.
        return "", "".join(_split(text["value"] if isinstance(text, Mapping) and "value" in text else text))
    if kind in ("thinking", "reasoning"):
        values = (part.get(name) for name in (kind, "text", "content", "summary"))
        return "".join("".join(_split(value)) for value in values if value is not None), ""
    raise ValueError(f"found a content of the kind {str(kind or type(content).__name__)[:40]}, expected text")


def _count(usage: object, name: str) -> int:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) else 0
