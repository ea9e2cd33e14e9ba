"""The prompts that one request becomes inside vLLM: one, or one for each place where its candidates part.

These prompts begin alike, pictures included. The pictures are processed once, and vLLM's prefix cache
computes the common part once. Of each prompt, one token is asked for: `logprob_token_ids` gives the
log-probabilities of exactly the tokens that may follow, before any sampling parameter acts on them. vLLM 0.24
has no such field and is asked for its likeliest tokens; one that is not among them gets the lowest value of
the list, which is the most that it can have.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tpru_verl.eval.decide import SCORE, Fork, best_of, forks_of, scores_of
from tpru_verl.eval.engines.base import Request
from tpru_verl.eval.store import Reply

if TYPE_CHECKING:
    from vllm import LLM

LIKELIEST = 100  # vLLM gives 20 unless its engine is told otherwise (`max_logprobs`)


@dataclass
class Job:
    """What vLLM is asked for one request, and what it has said so far.

    `prompt`, as vLLM takes it, is the whole prompt, or what those of all forks begin with. `begun` is
    what the chat template has begun of the response: the reply would lack it, and gets it back.
    """

    request: Request
    prompt: Any
    params: list[Any]  # of each prompt
    forks: list[Fork] = field(default_factory=list)
    paths: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)
    begun: str = ""

    def enqueue(self, llm: LLM) -> list[str]:
        """Hand the prompts to vLLM, the shortest first, and return their names. Raises as `LLM.enqueue`."""
        if not self.forks:
            return llm.enqueue([self.prompt], self.params, use_tqdm=False)
        prompts: Any = [
            {**self.prompt, "prompt_token_ids": [*self.prompt["prompt_token_ids"], *fork.path]}
            for fork in self.forks
        ]
        if _counts_readings(llm):
            return llm.enqueue(prompts, self.params, use_tqdm=False)
        names = llm.enqueue(prompts[:1], self.params[:1], use_tqdm=False)
        # Read once more, the prompt names its pictures, which vLLM's engine has by now, without their pixels.
        read: Any = llm.renderer.render_cmpl([self.prompt])[0]
        for fork, params in zip(self.forks[1:], self.params[1:], strict=True):
            one: Any = {**read, "prompt_token_ids": [*read["prompt_token_ids"], *fork.path]}
            names.append(llm.llm_engine.add_request(str(next(llm.request_counter)), one, params))
        return names

    def reply(self) -> Reply:
        if not self.forks:
            return _reply_of(self.outputs[0], self.begun)
        found = {}
        for i, fork in enumerate(self.forks):
            (after,) = self.outputs[i].outputs[0].logprobs
            least = min(each.logprob for each in after.values())
            found[fork.path] = {
                token: after[token].logprob if token in after else least for token in fork.following
            }
        scores = scores_of(self.paths, found)
        prompts = max(len(output.prompt_token_ids or ()) for output in self.outputs.values())
        return Reply([best_of(scores)], [SCORE], prompts, len(self.forks), scores)


def _counts_readings(llm: LLM) -> bool:
    """Whether pictures lie in shared memory, which is freed after as many readings as were announced."""
    pictures = getattr(llm.model_config, "multimodal_config", None)
    return getattr(pictures, "mm_processor_cache_type", "") == "shm"


def _reply_of(output: Any, begun: str) -> Reply:
    said = [sample.text for sample in output.outputs]
    texts = [text if text.lstrip().startswith(begun) else begun + text for text in said]
    finish = [str(sample.finish_reason) for sample in output.outputs]
    tokens = sum(len(sample.token_ids) for sample in output.outputs)
    return Reply(texts, finish, len(output.prompt_token_ids or ()), tokens)


def scoring_job(request: Request, prompt: dict[str, Any], tokenizer: Any) -> Job:
    """A prompt for each fork of the request's candidates; `prompt` has its text and its pictures."""
    from vllm import SamplingParams

    pictures = {name: value for name, value in prompt.items() if name != "prompt"}
    shared, paths = paths_of(tokenizer, prompt["prompt"], request.candidates)
    forks = forks_of([*paths.values()])
    params = [SamplingParams(max_tokens=1, temperature=0, **_told(SamplingParams, fork)) for fork in forks]
    return Job(request, {**pictures, "prompt_token_ids": shared}, params, forks, paths)


def _told(params: type, fork: Fork) -> dict[str, Any]:
    """What asks for log-probabilities: of named tokens, or in vLLM before 0.28 of the likeliest ones."""
    named = hasattr(params, "logprob_token_ids")
    return {"logprob_token_ids": [*fork.following]} if named else {"logprobs": LIKELIEST}


def paths_of(
    tokenizer: Any, text: str, candidates: Sequence[str]
) -> tuple[list[int], dict[str, tuple[int, ...]]]:
    """The tokens that all prompts begin with, and those that each candidate adds.

    A candidate's first letter may become one token with the end of the text, so that both are read together.
    No token reaches over a special one: what stands before the last of these is read once.
    """
    special = "|".join(re.escape(token) for token in tokenizer.all_special_tokens if token)
    ends = [match.end() for match in re.finditer(special, text)] if special else []
    start = ends[-1] if ends else 0
    read = tokenizer([text[start:] + candidate for candidate in candidates], add_special_tokens=False)
    paths = {one: tuple(ids) for one, ids in zip(candidates, read["input_ids"], strict=True)}
    return [*tokenizer(text[:start])["input_ids"]], paths
