"""In place of vLLM where EasyR1 imports it: names to import and to inherit from, and nothing behind them.

For tests on a CPU alone, with this folder's parent on PYTHONPATH; EasyR1 ends at its check for GPUs before it
would use any of them.
"""

import sys
from types import ModuleType

__version__ = "0.11.0"


class _Names(ModuleType):
    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {})
        setattr(self, name, value)
        return value


for name in ("distributed", "lora", "lora.models", "lora.request", "lora.utils", "lora.worker_manager"):
    module = _Names(f"{__name__}.{name}")
    module.__path__ = []  # a package: more can be imported from it
    sys.modules[module.__name__] = module
LLM, RequestOutput, SamplingParams = (
    type(name, (), {}) for name in ("LLM", "RequestOutput", "SamplingParams")
)
