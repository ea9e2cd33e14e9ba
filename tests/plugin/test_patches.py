"""Each patch of veRL: the fault of stock veRL without it, and the behaviour with it."""

import asyncio
import importlib.util
import json
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

pytest.importorskip("verl")
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils

from tpru_verl import __version__
from tpru_verl.plugin import hooks, patches, waiting

STOCK = {"VERL_USE_EXTERNAL_PLUGINS": "none"}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


EQUAL_LENGTHS = """
    import torch, verl
    from tensordict import TensorDict
    from verl.utils.tensordict_utils import maybe_fix_3d_position_ids
    rows = [torch.arange(4 * 9).view(4, 9) + i for i in range(3)]
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    data = TensorDict({"position_ids": nested}, batch_size=3)
    maybe_fix_3d_position_ids(data)
    assert all(torch.equal(a, b) for a, b in zip(data["position_ids"].unbind(), rows))
"""


Done = subprocess.CompletedProcess[str]


# Six seconds of a core each, so two tests share them.
@pytest.fixture(scope="module")
def stock() -> Done:
    return python(EQUAL_LENGTHS, TPRU_PLUGIN_ANNOUNCED="", VERL_PLATFORM="cpu", **STOCK)


@pytest.fixture(scope="module")
def patched() -> Done:
    return python(EQUAL_LENGTHS, TPRU_PLUGIN_ANNOUNCED="", VERL_PLATFORM="cpu")


def test_stock_verl_breaks_on_equal_lengths_and_the_plugin_does_not(stock: Done, patched: Done) -> None:
    assert stock.returncode != 0
    assert patched.returncode == 0, patched.stderr


@pytest.mark.parametrize("height", [3, 4])
@pytest.mark.parametrize(
    "lengths", [[7, 7, 7], [5, 7, 6], [12, 12, 12, 12], [9], [3], [3, 3], [4, 4, 4], [15] * 5, [1, 1]]
)
@pytest.mark.parametrize("pickled", [False, True], ids=["fresh", "lost its ragged index"])
def test_position_ids_come_back_row_by_row(height: int, lengths: list[int], pickled: bool) -> None:
    rows = [torch.arange(height * length).view(height, length) + 100 * i for i, length in enumerate(lengths)]
    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    if pickled:
        object.__setattr__(nested, "_ragged_idx", 1)  # what pickling leaves behind
    data = TensorDict({"position_ids": nested}, batch_size=len(rows))
    tensordict_utils.maybe_fix_3d_position_ids(data)
    for found, expected in zip(data["position_ids"].unbind(), rows, strict=True):
        assert torch.equal(found, expected)


def test_batches_without_mrope_are_left_alone() -> None:
    data = TensorDict({"position_ids": torch.arange(6).view(2, 3)}, batch_size=2)
    tensordict_utils.maybe_fix_3d_position_ids(data)
    assert torch.equal(data["position_ids"], torch.arange(6).view(2, 3))


@pytest.mark.parametrize("rows", [1, 3, 2 * patches.TOKENS_A_CHUNK + 5])
def test_log_probabilities_in_chunks_are_those_of_the_softmax(rows: int) -> None:
    from verl.utils.torch_functional import logprobs_from_logits_v2

    torch.manual_seed(0)
    logits, labels = torch.randn(rows, 11).bfloat16(), torch.randint(0, 11, (rows,))
    expected = logits.float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    found = logprobs_from_logits_v2(cast(torch.FloatTensor, logits), labels)
    torch.testing.assert_close(found, expected)


def test_the_backward_pass_keeps_the_logits_alone_and_has_the_gradients_of_the_softmax() -> None:
    from verl.utils.torch_functional import logprobs_from_logits_v2

    torch.manual_seed(0)
    rows = 2 * patches.TOKENS_A_CHUNK + 5
    logits, labels = torch.randn(rows, 64).bfloat16().requires_grad_(), torch.randint(0, 64, (rows,))
    weights, kept = torch.linspace(-1, 1, rows), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = logprobs_from_logits_v2(cast(torch.FloatTensor, logits), labels)
        (found * weights).sum().backward()
    assert sum(kept.values()) <= sum(each.nbytes for each in (logits, labels, weights))

    leaf = logits.detach().float().requires_grad_()
    (leaf.log_softmax(-1).gather(-1, labels[:, None])[:, 0] * weights).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.float(), leaf.grad, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("equal_size", [True, False])
def test_one_part_is_what_the_search_finds(equal_size: bool) -> None:
    from verl.utils import seqlen_balancing

    lengths = [5, 9, 1, 7, 7]
    found = seqlen_balancing.karmarkar_karp(lengths, k_partitions=1, equal_size=equal_size)
    assert [sorted(part) for part in found] == seqlen_balancing.get_seqlen_balanced_partitions(
        lengths, k_partitions=1, equal_size=equal_size
    )
    assert patches.one_part_needs_no_balance.__name__ not in hooks.skipped
    assert len(seqlen_balancing.get_seqlen_balanced_partitions(lengths, 2, False)) == 2


def test_generation_is_imported_without_sklearn() -> None:
    done = python(
        """
        import sys, verl, transformers.generation.candidate_generator
        print("sklearn.metrics" in sys.modules)
        """
    )
    assert done.stdout.splitlines()[-1:] == ["False"], done.stderr


def test_a_run_on_our_data_set_is_checked_before_the_start(tmp_path: Path) -> None:
    device = ModuleType("device")
    seen: list[object] = []
    device.auto_set_device = seen.append  # type: ignore[attr-defined]
    patches.check_before_start(device)
    others = {"data": {"custom_cls": {"path": "pkg://somebody.else"}}}
    device.auto_set_device(others)
    ours = {
        "data": {"custom_cls": {"path": "pkg://tpru_verl.plugin.dataset"}},
        "trainer": {"device": "cuda"},
        "actor_rollout_ref": {"model": {"path": str(tmp_path / "nothing")}},
    }
    with pytest.raises(SystemExit, match=r"^tpru: actor_rollout_ref\.model\.path=.*nothing: no such folder"):
        device.auto_set_device(ours)
    assert seen == [others, ours]


def replay_buffer(**kwargs: Any) -> Any:
    from omegaconf import OmegaConf
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    return ReplayBuffer("sync", OmegaConf.create(), None, "drop", OmegaConf.create(), **kwargs)


def test_the_trainer_polls_faster_and_an_explicit_interval_wins() -> None:
    assert replay_buffer().poll_interval == waiting.POLL_SECONDS < 1
    assert replay_buffer(poll_interval=3.0).poll_interval == 3.0


@pytest.mark.parametrize(
    ("running", "finished", "wait"), [(4, 0, 0.1), (2, 2, 0.05), (1, 99, 0.02), (0, 4, 0.1), (0, 0, 0.1)]
)
def test_the_trainer_polls_the_more_often_the_fewer_prompts_are_left(
    monkeypatch: pytest.MonkeyPatch, running: int, finished: int, wait: float
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    buffer = replay_buffer()
    buffer.running_keys["train"].update(map(str, range(running)))
    buffer.finished_keys["train"].update(f"f{i}" for i in range(finished))
    buffer._wait_for_next_poll("train", 0.0)
    assert waits == [pytest.approx(wait)]
    assert buffer.poll_interval == waiting.POLL_SECONDS


@pytest.mark.parametrize(("looked", "wait"), [(0.001, 0.02), (0.012, 0.06), (3.0, 0.1)])
def test_a_look_that_takes_long_is_not_followed_by_the_next_at_once(
    monkeypatch: pytest.MonkeyPatch, looked: float, wait: float
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    buffer = replay_buffer()
    buffer.running_keys["train"].add("last")
    buffer.finished_keys["train"].update(map(str, range(99)))
    buffer.waited_until = 1000.0 - looked
    buffer._wait_for_next_poll("train", 0.0)
    assert waits == [pytest.approx(wait)]


class TestOneCopyInTransfer:
    def test_samples_share_their_prompts_pixels_on_the_wire_and_behind_it(self) -> None:
        from transfer_queue.utils.serial_utils import decode, encode

        pixels = torch.rand(40, 6)
        samples = [{"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, i]])} for i in range(8)]
        frames = encode({"multi_modal_inputs": samples, "again": pixels})
        assert sum(memoryview(cast("bytes", frame)).nbytes == pixels.nbytes for frame in frames) == 1
        got = decode(frames)
        assert len({sample["pixel_values"].data_ptr() for sample in got["multi_modal_inputs"]}) == 1
        for sample, one in zip(got["multi_modal_inputs"], samples, strict=True):
            assert all(torch.equal(sample[key], one[key]) for key in one)
        assert torch.equal(got["again"], pixels)

    def test_only_the_very_same_values_are_shared(self) -> None:
        from transfer_queue.utils.serial_utils import decode, encode

        whole = torch.arange(24, dtype=torch.float32).view(4, 6)
        views = [
            whole,
            whole.view(6, 4),
            whole[:2],
            whole[1:3],
            whole.t(),
            whole.t(),
            whole.view(torch.int32),
        ]
        views += [whole.t() + 1 for _ in range(4)] + [torch.empty(0), torch.empty(0, 3)]
        views += [torch.nested.as_nested_tensor([whole[0, :2], whole[1]], layout=torch.jagged)]
        for _ in range(2):  # a message knows nothing of those before it
            for got, sent in zip(decode(encode(views)), views, strict=True):
                pairs = zip(got.unbind(), sent.unbind(), strict=True) if sent.is_nested else [(got, sent)]
                assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
            whole += 1


class FakeRay(ModuleType):
    """As much of Ray as the liveness check asks: an actor that lives until told otherwise."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.dead = False
        self.exceptions = __import__("ray").exceptions
        self.__ray_ready__ = self
        self.asked = 0

    def remote(self) -> int:
        self.asked += 1
        return self.asked

    def wait(self, refs: list[int], **_: object) -> tuple[list[int], list[int]]:
        return refs, []

    def get(self, ref: int) -> None:
        if self.dead:
            raise self.exceptions.RayActorError()


def test_waiting_for_rollouts_ends_when_a_watched_worker_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(waiting, "_watched", [ray])
    monkeypatch.setattr(waiting, "LIVENESS_SECONDS", 0.0)
    buffer = replay_buffer(poll_interval=0.0)
    for _ in range(3):
        buffer._wait_for_next_poll("train", time.time())
    ray.dead = True
    with pytest.raises(RuntimeError, match="rollout worker died"):
        buffer._wait_for_next_poll("train", time.time())


@pytest.fixture
def local_ray():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_a_weight_update_that_fails_in_vllm_ends_the_sender(
    local_ray: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Stock veRL's sender waits for ever here: nobody will ever acknowledge."""
    from verl.workers.rollout.vllm_rollout import vllm_rollout

    monkeypatch.setattr(waiting, "LIVENESS_SECONDS", 0.2)

    @local_ray.remote
    def fails() -> None:
        raise ValueError("'Parameter' object has no attribute 'weight_loader'")

    class Method:
        def remote(self, *_: object, **__: object) -> Any:
            return fails.remote()

    class Server:
        collective_rpc = Method()

    sender_class = vars(vllm_rollout)["BucketedWeightSender"]  # ours, in the place of veRL's
    adapter = object.__new__(vllm_rollout.ServerAdapter)
    adapter._has_server, adapter.server_handle = True, Server()

    async def update() -> None:
        await adapter._execute_method("update_weights_from_ipc", non_block=True)
        sender = sender_class(f"ipc://{tmp_path}/socket", 1, use_shm=True)
        await sender.async_send_weights(iter([("weight", torch.zeros(2))]))

    with pytest.raises(Exception, match="weight_loader"):
        asyncio.run(asyncio.wait_for(update(), 60))


def test_a_patch_whose_target_is_gone_logs_a_warning_and_is_skipped(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks.logger, "propagate", True)
    module = ModuleType("later_verl")
    hooks.apply(patches.equal_length_position_ids, module)
    assert "patch equal_length_position_ids is skipped" in caplog.text
    assert "has no maybe_fix_3d_position_ids any more" in caplog.text


def test_a_patch_waits_for_its_module_and_runs_once(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "patched_later.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[int] = []

    def patch(module: ModuleType) -> None:
        seen.append(module.value)
        module.value = 2  # type: ignore[attr-defined]

    for _ in range(2):
        hooks.when_imported("patched_later")(patch)
    assert seen == []
    import patched_later  # type: ignore[import-not-found]

    assert (seen, patched_later.value) == ([1], 2)


def test_a_patch_waits_for_an_import_that_succeeds(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "broken_at_first.py"
    module.write_text("value = 1\nraise KeyError\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    hooks.when_imported("broken_at_first")(lambda module: setattr(module, "value", 2))
    with pytest.raises(KeyError):
        import broken_at_first  # type: ignore[import-not-found]
    module.write_text("value = 1\n")
    import broken_at_first  # type: ignore[import-not-found]

    assert broken_at_first.value == 2


def test_a_patch_waits_while_the_module_is_only_looked_for(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As libraries ask whether a package is there: `importlib.util.find_spec`."""
    (tmp_path / "looked_for.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[str] = []
    hooks.when_imported("looked_for")(lambda module: seen.append(module.__name__))
    for _ in range(2):
        assert importlib.util.find_spec("looked_for") is not None
    assert seen == []
    import looked_for  # type: ignore[import-not-found]

    assert seen == ["looked_for"]
    assert type(looked_for.__loader__).__name__ == "SourceFileLoader"


def test_the_plugin_is_seen_once_and_only_when_it_is_wanted(stock: Done, patched: Done) -> None:
    elsewhere = python("import verl", TPRU_PLUGIN_ANNOUNCED="", VERL_PLATFORM="").stderr
    assert elsewhere.count(f"tpru plugin {__version__} loaded into veRL: patches\n") == 1
    assert "loaded into veRL: patches, cpu" in patched.stderr
    assert "line 9" in stock.stderr  # where it fails: veRL was imported before
    assert "tpru plugin" not in stock.stderr


def test_a_part_that_cannot_load_is_a_visible_warning() -> None:
    broken = """
        import sys
        sys.modules["tpru_verl.plugin.cpu"] = None
        import verl
    """
    output = python(broken, VERL_PLATFORM="cpu", TPRU_PLUGIN_ANNOUNCED="").stderr
    assert "cpu could not be loaded and is skipped" in output
    assert "loaded into veRL: patches\n" in output


def test_the_plugin_imports_none_of_the_heavy_packages_itself() -> None:
    heavy = """
        import sys
        import tpru_verl.plugin, tpru_verl.plugin.patches, tpru_verl.plugin.vllm_process
        tpru_verl.plugin.vllm_process.register()
        assert not {"torch", "transformers", "vllm", "verl", "ray"} & set(sys.modules), sys.modules.keys()
    """
    result = python(heavy)
    assert result.returncode == 0, result.stderr


def test_verl_s_entry_point_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import entry_points

    register: Callable[[], None] = entry_points(group="verl.plugins", name="tpru")["tpru"].load()
    assert register.__module__ == "tpru_verl.plugin"


def test_a_patch_that_is_named_is_not_applied_and_the_log_says_so(root: Path) -> None:
    """Those that the benchmark of a step skips for stock veRL, of which none is unknown."""
    skipped = re.findall(r'^    "(\w+)",$', (root / "benchmarks/step.py").read_text(), re.MULTILINE)
    assert "prompt_polling" in skipped
    code = """
        import inspect
        import verl
        from tpru_verl.plugin import hooks, vllm_process
        from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
        vllm_process.register()
        print(inspect.signature(ReplayBuffer.__init__).parameters["poll_interval"].default)
        print(sorted(hooks.skipped - {name for _, name in hooks.registered()}))
    """
    names = " , ".join([*skipped, "prompt_poling"])
    done = python(code, VERL_PLATFORM="cpu", TPRU_PLUGIN_ANNOUNCED="", TPRU_SKIP_PATCHES=names)
    assert done.stdout.splitlines()[-2:] == ["2.0", "['prompt_poling']"], done.stderr  # 2.0 is veRL's own
    said = [line for line in done.stderr.splitlines() if "tpru plugin" in line]
    assert f", without {', '.join(sorted([*skipped, 'prompt_poling']))}" in said[0]
    (warning,) = (line for line in said if "TPRU_SKIP_PATCHES" in line)
    assert warning.endswith("TPRU_SKIP_PATCHES names prompt_poling, expected names of docs/patches.md")


def test_the_page_lists_the_patches_that_are_registered_and_their_tests(root: Path) -> None:
    done = python(
        """
        import json
        import verl
        from tpru_verl.plugin import hooks, vllm_process
        vllm_process.register()
        print(json.dumps(sorted({name for _, name in hooks.registered() if name[0] != "_"})))
        """,
        VERL_PLATFORM="cpu",
    )
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", (root / "docs/patches.md").read_text(), re.MULTILINE)
    assert [*json.loads(done.stdout.splitlines()[-1])] == sorted(name for name, _ in rows), done.stderr
    assert all((root / test).is_file() for _, test in rows)
