"""MiniGrid's BabyAI levels, solved by the bot that comes with them: seen from above, a frame an action."""

# pyright: reportMissingImports=false
from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import cast

import gymnasium
import numpy as np
from minigrid.minigrid_env import MiniGridEnv
from minigrid.utils.baby_ai_bot import BabyAIBot
from PIL import Image

from tpru_verl.builder.clips import Frame

SCENE_BY_KIND = True
KINDS = ("GoToLocal", "PickupLoc", "PutNextLocal", "GoToObjMaze", "UnlockPickup", "Pickup")
MOST_ACTIONS = 200
SIDE = 384  # pixels at most


def play(kind: str, rng: np.random.Generator) -> Iterator[Frame]:
    """An episode; its mission and subgoals are the text. Raises ValueError where the bot fails."""
    with contextlib.redirect_stdout(io.StringIO()):  # levels report each draw that they reject
        environment = gymnasium.make(f"BabyAI-{kind}-v0", render_mode="rgb_array")
        try:
            yield from _episode(environment, int(rng.integers(2**31)))
        finally:
            environment.close()


def _episode(environment: gymnasium.Env, seed: int) -> Iterator[Frame]:
    environment.reset(seed=seed)
    grid = cast(MiniGridEnv, environment.unwrapped)
    mission, tile = str(grid.mission), min(32, SIDE // max(grid.width, grid.height))
    bot, frames, action = BabyAIBot(grid), list[Frame](), None
    for number in range(MOST_ACTIONS):
        picture = _png(grid.get_frame(highlight=False, tile_size=tile))
        action = bot.replan(action)
        frames.append(Frame(picture, number, text=_subgoal(bot), about=f"how an agent is to {mission}"))
        _, reward, done, truncated, _ = environment.step(action)
        if done or truncated:
            break
    else:
        reward = 0
    if float(reward) <= 0:
        raise ValueError(f"found the mission {mission!r} not solved by the bot")
    frames.append(
        Frame(
            _png(grid.get_frame(highlight=False, tile_size=tile)),
            len(frames),
            text="done",
            about=frames[0].about,
        )
    )
    yield from frames


def _subgoal(bot: BabyAIBot) -> str:
    """The bot's current subgoal, as "go next to the grey key" or "pickup"."""
    if not bot.stack:
        return ""
    name = type(bot.stack[-1]).__name__.removesuffix("Subgoal")
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).strip()
    thing = bot.stack[-1].datum
    colour, kind = getattr(thing, "color", None), getattr(thing, "type", None)
    return f"{words} the {colour} {kind}" if colour and kind else words


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
