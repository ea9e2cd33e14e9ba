"""An OpenAI-compatible endpoint as engine: many requests at once, retried with growing pauses."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tpru_verl.data.tokens.pixels import Bounds, png
from tpru_verl.eval.engines.base import Request, Sampling, parts_of, prepared_images
from tpru_verl.eval.store import Reply
from tpru_verl.sample import IMAGE_TAG
from tpru_verl.terminal import line_of

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FAILURES_IN_A_ROW = 20  # requests that fail one after another: the server is broken, not the rows


class Endpoint:
    """Answers by POST /chat/completions, `concurrency` at a time.

    429, 5xx, time-outs and lost connections are tried `retries` more times by the `openai` client, with
    pauses that grow or that the server names. A server that is gone ends the run, a request refused fails
    its row.
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
        self.model, self.base_url, self.bounds, self.sampling = model, base_url.rstrip("/"), bounds, sampling
        self.concurrency, self.timeout, self.retries = concurrency, timeout, retries
        self.extra = dict(extra or {})
        self.identity = f"endpoint:{self.base_url}:{model}:{sorted(self.extra.items())}"
        self._checked = False

    def description(self) -> dict[str, object]:
        return {"engine": "endpoint", "base_url": self.base_url, "options": self.extra}

    def start(self, requests: Sequence[Request]) -> None:
        """See that the server is there and has the model. Raises ConnectionError, ValueError."""
        if requests and not self._checked:
            asyncio.run(self._check())
            self._checked = True

    async def _check(self) -> None:
        import openai

        async with self._client(retries=1) as client:
            try:
                names = [model.id async for model in client.models.list()]
            except openai.APIConnectionError as error:
                reason = line_of(error.__cause__ or error)
                raise ConnectionError(
                    f"{self.base_url}: no answer ({reason}); is the server running?"
                ) from error
            except openai.AuthenticationError as error:
                raise ValueError(
                    f"{self.base_url}: {_said(error)}; expected a key in OPENAI_API_KEY"
                ) from error
            except (openai.OpenAIError, ValueError, TypeError):
                return  # not every server lists its models; the first request will tell
        if names and self.model not in names:
            raise ValueError(f"{self.base_url}: found models {', '.join(names[:8])}; expected {self.model}")

    def _client(self, retries: int | None = None) -> AsyncOpenAI:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise ValueError('--base-url: needs `pip install "tpru-verl[eval]"`') from error
        return AsyncOpenAI(
            base_url=self.base_url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=self.timeout,
            max_retries=self.retries if retries is None else retries,
        )

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Reply]]:
        """Replies in the order in which they come."""
        self.start(requests)
        loop = asyncio.new_event_loop()
        replies = self._answers(requests)
        try:
            while (pair := loop.run_until_complete(anext(replies, None))) is not None:
                yield pair
        finally:
            loop.run_until_complete(_end_tasks())  # after Ctrl-C: what was waiting, and requests under way
            loop.run_until_complete(replies.aclose())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    def close(self) -> None:
        """Nothing is kept open between two calls of `answer`."""

    async def _answers(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[Request, Reply], None]:
        todo, failures = iter(requests), 0
        running: set[asyncio.Task[tuple[Request, Reply]]] = set()
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
                                f"{self.base_url}: {failures} requests failed one after another, the last: "
                                f"{reply.error}; answers are kept, the same command goes on from there"
                            )
                        yield request, reply
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _one(self, client: AsyncOpenAI, request: Request) -> tuple[Request, Reply]:
        import openai

        try:
            content = await asyncio.to_thread(content_of, request, self.bounds)
        except ValueError as error:
            return request, Reply(error=line_of(error))
        sampling = self.sampling
        try:
            found = await client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],  # type: ignore[list-item]
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                n=sampling.n,
                seed=int(request.key[:7], 16) if sampling.temperature else None,
                extra_body=self.extra or None,
            )
        except openai.APITimeoutError:
            return request, Reply(error=f"no answer within {self.timeout:g} s, {self.retries + 1} times")
        except openai.APIConnectionError as error:
            reason = line_of(error.__cause__ or error)
            raise ConnectionError(
                f"{self.base_url}: no answer any more ({reason}); answers are kept, the same "
                "command goes on from there"
            ) from error
        except openai.NotFoundError as error:
            raise ValueError(f"{self.base_url}: {self.model}: {_said(error)}") from error
        except openai.AuthenticationError as error:
            raise ValueError(f"{self.base_url}: {_said(error)}; expected a key in OPENAI_API_KEY") from error
        except openai.OpenAIError as error:
            return request, Reply(error=_said(error))
        except ValueError as error:  # what came is no JSON
            return request, Reply(error=f"found an answer that is no completion: {line_of(error)}")
        return request, _reply(found, sampling.n)


async def _end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


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


def _reply(found: Any, n: int) -> Reply:
    """From a completion; servers differ in what they leave out."""
    choices = getattr(found, "choices", None)
    if not choices or len(choices) != n:
        return Reply(error=f"found {len(choices or ())} choices, expected {n}")
    texts = []
    for choice in choices:
        message = getattr(choice, "message", None)
        content = getattr(message, "content", None)
        # A server with a reasoning parser sends the reasoning apart from the answer.
        thought = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
        if content is None and not thought:
            return Reply(error="found a choice without content, expected text")
        texts.append(f"<think>{thought}</think>{content or ''}" if thought else content)
    usage = getattr(found, "usage", None)
    return Reply(
        texts,
        [str(choice.finish_reason) for choice in choices],
        getattr(usage, "prompt_tokens", 0) or 0,
        getattr(usage, "completion_tokens", 0) or 0,
    )


def _said(error: Exception) -> str:
    """The server's own words, where it had some."""
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    status = getattr(error, "status_code", None)
    return (
        f"{f'HTTP {status}: ' if status else ''}{line_of(Exception(message)) if message else line_of(error)}"[
            :500
        ]
    )
