"""Raises ImportError in a veRL that is too old; `dataset` and `agent_loop` import this first."""

import verl

from tpru_verl import trainers

if reason := trainers.too_old(verl.__version__):
    raise ImportError(reason)
