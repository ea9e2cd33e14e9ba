"""Meta-World's manipulation tasks, solved by the scripted policies that come with them (MuJoCo, off-screen).

Without a display, MuJoCo needs EGL (Debian: libegl1 libgl1-mesa-dri). Tasks are described by language_world.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported

try:
    import mujoco
except AttributeError as error:
    if "NoneType" not in str(error):  # PyOpenGL's way to say that it found no library
        raise
    raise ValueError(
        f"sim:metaworld: MuJoCo found no {os.environ['MUJOCO_GL']}, expected EGL "
        "(Debian: libegl1 libgl1-mesa-dri)"
    ) from error
import numpy as np
from language_world import TASK_DESCRIPTIONS
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP
from PIL import Image

from tpru_verl.builder.clips import Frame
from tpru_verl.builder.pictures import jpeg

# Tasks in which something visibly moves besides the arm.
SCENE_BY_KIND = False  # one table for all of them
KINDS = (
    "assembly", "basketball", "box-close", "button-press", "coffee-pull", "dial-turn", "door-open",
    "drawer-close", "drawer-open", "faucet-open", "hammer", "lever-pull", "peg-insert-side", "pick-place",
    "plate-slide", "push", "shelf-place", "sweep-into", "window-open",
)  # fmt: skip
WIDTH, HEIGHT = 480, 360  # pixels
MOST_STEPS, EVERY, AFTER = 400, 5, 10  # of the simulation: at most, a frame, beyond success
MOVED, OPENED = 0.005, 0.05  # metres, and share, between two frames


def play(kind: str, rng: np.random.Generator) -> Iterator[Frame]:
    """One episode up to success, every few steps of it. Raises ValueError where the policy fails."""
    # A fresh environment: what `reset(seed)` gives depends on what was drawn before.
    name = f"{kind}-v3"
    make: Any = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name}-goal-observable"]
    environment = make(seed=int(rng.integers(2**31)))
    policy, camera = ENV_POLICY_MAP[name](), _camera()
    about = f"how a robot arm is to {TASK_DESCRIPTIONS[kind]}"
    observation, _ = environment.reset()
    environment.model.vis.quality.offsamples = 0
    renderer = mujoco.Renderer(environment.model, HEIGHT, WIDTH)
    # They take most of the time of a picture, and a model sees it at 192 x 192 pixels.
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = 0
    frames: list[Frame] = []
    done, before = 0, observation
    try:
        for step in range(MOST_STEPS):
            if step % EVERY == 0:
                renderer.update_scene(environment.data, camera)
                picture = jpeg(Image.fromarray(renderer.render()))
                frames.append(Frame(picture, step, step * environment.dt, _moved(before, observation), about))
                before = observation
            action = np.clip(policy.get_action(observation), -1, 1)
            observation, _, _, truncated, info = environment.step(action)
            done += info["success"] > 0
            if done > AFTER or truncated:
                break
    finally:
        renderer.close()
        environment.close()
    if not done:
        raise ValueError(f"found {kind} not solved by its policy after {MOST_STEPS} steps")
    yield from frames


def _moved(before: np.ndarray, now: np.ndarray) -> str:
    """What the hand did, by the first four observations: its place in metres, how far it is open (0 to 1)."""
    (x, y, z), opened = now[:3] - before[:3], now[3] - before[3]
    if abs(opened) > OPENED:
        return f"the gripper {'opens' if opened > 0 else 'closes'}"
    named = {"right": x, "left": -x, "forward": y, "back": -y, "up": z, "down": -z}
    way = max(named, key=lambda name: named[name])
    return f"the hand moves {way}" if named[way] > MOVED else "the hand rests"


def _camera() -> mujoco.MjvCamera:
    """Free, as the tasks' own corner cameras are upside down."""
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    camera.lookat[:] = (0, 0.68, 0.1)
    camera.distance, camera.azimuth, camera.elevation = 1.15, 140, -32
    return camera
