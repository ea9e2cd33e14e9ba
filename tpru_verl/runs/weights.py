"""What `tpru export` asks of processes with torch (`launch.apart`): join shards, merge an adapter, compare.

Compared are the log-probabilities of one made answer to one made picture, by the shards, by transformers and
by vLLM. A model that lost weights, or that sees pictures otherwise, gives other numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ANSWER = "The pictures show <answer>B</answer>, the second order <answer>3 1 2 4</answer>."


def join(request: Mapping[str, str]) -> None:
    """Write the model of the shards in the folder `request["shards"]` to the folder `request["out"]`.

    By veRL's merger, in bf16; an adapter goes to `lora_adapter` in it. Shards of adapters alone
    (`save_lora_only`) get the weights of `request["base"]`. Raises ValueError where that is missing, and for
    a shard that would run code when the merger reads it.
    """
    from torch.serialization import get_unsafe_globals_in_checkpoint
    from verl.model_merger.base_model_merger import ModelMergerConfig
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    from tpru_verl.terminal import line_of

    for shard in sorted(Path(request["shards"]).glob("model_world_size_*_rank_*.pt")):
        try:
            unsafe = get_unsafe_globals_in_checkpoint(str(shard))
        except Exception as error:  # of zip files, of pickles, of torch
            raise ValueError(
                f"{shard.resolve()}: found no whole file of torch ({line_of(error)}), as a save that was cut "
                "off leaves it; name an earlier checkpoint with --step"
            ) from error
        if unsafe:
            raise ValueError(f"{shard.resolve()}: found {unsafe[0]}, expected tensors alone: it may run code")
    huggingface = str(Path(request["shards"]) / "huggingface")
    config = ModelMergerConfig(
        "merge",
        "fsdp",
        target_dir=request["out"],
        local_dir=request["shards"],
        hf_model_config_path=huggingface,
    )
    merger = FSDPModelMerger(config)
    state = _joined(Path(request["shards"]))
    if not all(".lora_" in name for name in state):
        del state
        merger.merge_and_save()
        return
    if not request["base"]:
        raise ValueError(
            f"{request['shards']}: found adapters alone (save_lora_only), expected the model that they were "
            "trained on; name it with --base"
        )
    shutil.copytree(huggingface, request["out"], dirs_exist_ok=True)
    _loaded(Path(request["base"])).save_pretrained(request["out"])
    merger.save_lora_adapter(state)


def compare(request: Mapping[str, str]) -> dict[str, Any]:
    """`shards`: by the checkpoint `request["shards"]`; `model`: by the folder `request["model"]`, with the
    adapter `request["adapter"]` if given. Also the tokens that end an answer: `template` and `stops`.

    Raises ValueError for weights that are missing, unknown or of other sizes.
    """
    model = Path(request["model"])
    shards = _of_shards(Path(request["shards"]), request["base"])
    found = _of_model(model, request.get("adapter"))
    return {"shards": shards, "model": found, **_end_tokens(model)}


def _of_shards(actor: Path, base: str) -> list[float]:
    """In bf16; an adapter stays apart from its layers. `base`: the model of shards that lack its weights."""
    folder, state = actor / "huggingface", _joined(actor)
    whole = {_plain(name): tensor for name, tensor in state.items() if ".lora_" not in name}
    model = _loaded(folder, whole) if whole else _loaded(Path(base))
    if adapter := {name: tensor for name, tensor in state.items() if ".lora_" in name}:
        model = _with_adapter(model, adapter, folder.parent)
    return _log_probs(model, folder)


def _of_model(folder: Path, adapter: str | None) -> list[float]:
    model = _loaded(folder)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    return _log_probs(model, folder)


def of_vllm(request: Mapping[str, str]) -> list[float]:
    """By the folder `request["model"]`, as vLLM serves it."""
    from tpru_verl.eval.engines.local import prepare_cpu, start_vllm

    own = prepare_cpu()
    folder = Path(request["model"])
    text, picture = _prompt(folder)
    llm: Any = start_vllm(
        str(folder),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=1024,  # a longer one would need a cache for nothing
        limit_mm_per_prompt={"image": 1},
        **own,
    )
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    output: Any
    (output,) = llm.generate([{"prompt": text, "multi_modal_data": {"image": [picture]}}], params)
    steps = output.prompt_logprobs[-_answer_tokens(folder) :]
    found = [next(iter(step.values())).logprob for step in steps]
    llm.llm_engine.engine_core.shutdown()
    return found


def fuse(request: Mapping[str, str]) -> None:
    """Write the model of the folder `request["model"]` with the adapter `request["adapter"]` in its weights
    to the folder `request["out"]`."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(_loaded(Path(request["model"])), request["adapter"])
    model.merge_and_unload().save_pretrained(request["out"])


def _end_tokens(folder: Path) -> dict[str, Any]:
    """`template`: the token that ends an assistant's turn, None for none; `stops`: where sampling stops."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    special = {*tokenizer.all_special_ids, *_added(tokenizer)}
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    ends = [number for number in ids if number in special]
    stops = GenerationConfig.from_pretrained(folder).eos_token_id if _has_stops(folder) else None
    return {
        "template": ends[-1] if ends else None,
        "stops": [stops] if isinstance(stops, int) else stops or [],
    }


def _has_stops(folder: Path) -> bool:
    return (folder / "generation_config.json").is_file()


def _added(tokenizer: Any) -> list[int]:
    return [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]


def _joined(actor: Path) -> dict[str, Any]:
    """The tensors of all ranks in bf16, each joined along the dimension that FSDP split; without pickle."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    from tpru_verl.checkpoints import Checkpoint

    ranks = Checkpoint(None, actor).ranks
    parts = [
        torch.load(
            actor / f"model_world_size_{ranks}_rank_{rank}.pt",
            map_location="cpu",
            weights_only=True,
            mmap=True,
        )
        for rank in range(ranks)
    ]
    joined = {}
    for name, first in parts[0].items():
        tensors = [part[name] for part in parts]
        if isinstance(first, DTensor):
            split = [place.dim for place in first.placements if isinstance(place, Shard)]
            local = [tensor._local_tensor.bfloat16() for tensor in tensors]
            joined[name] = torch.cat(local, dim=split[0]) if split else local[0]
        else:
            joined[name] = first.bfloat16() if first.is_floating_point() else first
    return joined


def _plain(name: str) -> str:
    """The name of a weight without what peft puts around it."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _loaded(folder: Path, state: Mapping[str, Any] | None = None) -> Any:
    """The model of `folder` by transformers, in bf16, with the weights `state` where they are given.

    Raises ValueError for weights that are missing, too many or of other sizes.
    """
    import torch
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(folder)
    kind: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    made, said = kind.from_pretrained(
        None if state else folder,
        config=config,
        state_dict=state,
        dtype=torch.bfloat16,
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    if wrong := {key: sorted(map(str, names))[:3] for key, names in said.items() if names}:
        raise ValueError(f"{folder}: transformers finds {wrong}")
    return made


def _with_adapter(model: Any, state: Mapping[str, Any], actor: Path) -> Any:
    from peft import LoraConfig, get_peft_model

    meta = json.loads((actor / "lora_train_meta.json").read_text(encoding="utf-8"))
    rank, alpha = meta["r"], meta["lora_alpha"]
    made = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=adapted(state)))
    if unknown := made.load_state_dict(state, strict=False).unexpected_keys:
        raise ValueError(f"{actor}: found adapters of unknown layers: {unknown[:3]}")
    return made


def adapted(names: Iterable[str]) -> list[str]:
    """Whole names of the layers with an adapter, from the names of its weights."""
    found = {
        name.partition(".lora_")[0].removeprefix("base_model.model.") for name in names if ".lora_" in name
    }
    return sorted(found)


def _prompt(folder: Path) -> tuple[str, Any]:
    """A chat with a picture and an answer, as text, and the picture."""
    import numpy as np
    from PIL import Image
    from transformers import AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "Which order is right?"}]
    chat = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    across, down = np.meshgrid(np.arange(112), np.arange(112))
    picture = np.stack([across * 2, down * 2, (across + down) % 256], axis=-1).astype(np.uint8)
    return text + ANSWER, Image.fromarray(picture)


def _answer_tokens(folder: Path) -> int:
    """One less than the answer has: its first token may join the prompt's last one."""
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(folder)(ANSWER, add_special_tokens=False)["input_ids"]) - 1


def _log_probs(model: Any, folder: Path) -> list[float]:
    import torch
    from transformers import AutoProcessor

    text, picture = _prompt(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**inputs).logits[0, :-1].float()
    targets = inputs["input_ids"][0, 1:]
    found = torch.log_softmax(logits, dim=-1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return found[-_answer_tokens(folder) :].tolist()
