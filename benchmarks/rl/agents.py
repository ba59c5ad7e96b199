"""The agents that are compared: their environments, hyperparameters and models.

Both arms play in environments that :func:`make_env` makes, as many of them in one process, and both are
trained by the same PPO. The arm on pixels adds the field's standard preprocessing and ``CnnPolicy``; the arm
on latents adds ``VecLatentObservation`` and ``MlpPolicy``. The hyperparameters are the RL Zoo's tuned ones
(``hyperparams/ppo.yml`` of DLR-RM/rl-baselines3-zoo); ``LATENT_CHANGES`` lists those that differ for latents.

Algorithms with a replay memory need fewer steps: SAC for CarRacing, Pendulum and
DMControl, DQN and QR-DQN for Atari.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import GrayscaleObservation, ResizeObservation, TransformReward
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.atari_wrappers import (
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    NoopResetEnv,
    WarpFrame,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize
from torch import nn

from latent_obs.collecting.sources import open_env
from latent_obs.evaluation.ram import state_variables
from latent_obs.sb3 import VecLatentObservation

Arm = Literal["pixels", "latents", "latents-raw", "state"]
Family = Literal["atari", "car_racing", "vizdoom", "pendulum", "dm_control"]
Algorithm = Literal["ppo", "sac", "dqn", "qrdqn"]
Model = PPO | SAC | DQN | QRDQN
MODELS: dict[Algorithm, type[Model]] = {"ppo": PPO, "sac": SAC, "dqn": DQN, "qrdqn": QRDQN}

N_ENVS: dict[Algorithm, int] = {"ppo": 8, "sac": 4, "dqn": 4, "qrdqn": 8}

# "lin_x" is the zoo's notation for a value that falls from x to zero over the run.
PPO_ARGUMENTS: dict[Family, dict[str, Any]] = {
    "atari": {
        "n_steps": 128,
        "n_epochs": 4,
        "batch_size": 256,
        "learning_rate": "lin_2.5e-4",
        "clip_range": "lin_0.1",
        "vf_coef": 0.5,
        "ent_coef": 0.01,
    },
    "car_racing": {
        "n_steps": 512,
        "n_epochs": 10,
        "batch_size": 128,
        "learning_rate": "lin_1e-4",
        "clip_range": 0.2,
        "vf_coef": 0.5,
        "ent_coef": 0.0,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "max_grad_norm": 0.5,
        "use_sde": True,
        "sde_sample_freq": 4,
        "policy_kwargs": {
            "log_std_init": -2,
            "ortho_init": False,
            "activation_fn": "GELU",
            "net_arch": {"pi": [256], "vf": [256]},
        },
    },
}

# The zoo has no hyperparameters for ViZDoom.
PPO_ARGUMENTS["vizdoom"] = PPO_ARGUMENTS["atari"]

# Two gradient steps follow each step of the four environments. These are our own values, and not tuned.
SAC_ARGUMENTS: dict[str, Any] = {
    "learning_rate": "lin_7e-4",
    "buffer_size": 100_000,
    "batch_size": 128,
    "learning_starts": 600,
    "train_freq": 1,
    "gradient_steps": 2,
    "tau": 0.02,
    "gamma": 0.98,
    "ent_coef": "auto_0.1",
    "policy_kwargs": {"net_arch": [256, 256]},
}
# The zoo's for Pendulum, but for the number of environments: as many updates as steps.
PENDULUM_ARGUMENTS: dict[str, Any] = {"learning_rate": 1e-3, "learning_starts": 400, "gradient_steps": -1}
# For few steps: an update for each step and returns over many steps, as in van Hasselt et al. (2019),
# "When to use parametric models in reinforcement learning?". The rest are our own values.
DQN_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "buffer_size": 100_000,
    "batch_size": 64,
    "learning_starts": 1600,
    "train_freq": 1,
    "gradient_steps": -1,
    "n_steps": 10,
    "gamma": 0.99,
    "target_update_interval": 2000,
    "exploration_fraction": 0.1,
    "exploration_final_eps": 0.02,
    "policy_kwargs": {"net_arch": [256, 256]},
}
# For millions of steps: an update for every four steps, as DQN in Atari since Mnih et al. (2015), with the
# quantiles of Dabney et al. (2018). Not tuned.
QRDQN_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 2e-4,
    "buffer_size": 500_000,
    "batch_size": 64,
    "learning_starts": 20_000,
    "train_freq": 1,
    "gradient_steps": 2,
    "n_steps": 3,
    "gamma": 0.99,
    "target_update_interval": 8000,
    "exploration_fraction": 0.04,
    "exploration_final_eps": 0.01,
    "policy_kwargs": {"net_arch": [256, 256], "n_quantiles": 25},
}
OFF_POLICY_ARGUMENTS: dict[Algorithm, dict[str, Any]] = {
    "sac": SAC_ARGUMENTS,
    "dqn": DQN_ARGUMENTS,
    "qrdqn": QRDQN_ARGUMENTS,
}
# CURL's (Laskin et al. 2020), with smaller networks and batches. CURL has an update for each step; one for
# eight frames, as it has in cartpole-swingup, keeps each task at a few minutes.
DM_CONTROL_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 100_000,
    "batch_size": 128,
    "learning_starts": 1000,
    "tau": 0.01,
    "gamma": 0.99,
    "ent_coef": "auto_0.1",
    "policy_kwargs": {"net_arch": [256, 256]},
}
# Frames for which an action is taken: PlaNet's (Hafner et al. 2019), as in CURL's table.
ACTION_REPEATS = {
    "finger-spin": 2,
    "cartpole-swingup": 8,
    "reacher-easy": 4,
    "cheetah-run": 4,
    "walker-walk": 2,
    "ball_in_cup-catch": 4,
}
FRAMES_PER_UPDATE = 8
SAC_SKIP, PPO_SKIP, VIZDOOM_SKIP = 4, 2, 4
PATIENCE, GIVEN_UP, SAC_REWARD_SCALE, VIZDOOM_REWARD_SCALE = 400, 20.0, 0.1, 0.01

# MlpPolicy has two layers of 64 by default, while the layer above CnnPolicy's convolutions has 512 units.
LATENT_CHANGES: dict[Family, dict[str, Any]] = {
    "atari": {"policy_kwargs": {"net_arch": [256, 256]}},
    "car_racing": {},
}
LATENT_CHANGES["vizdoom"] = LATENT_CHANGES["atari"]
LATENT_CHANGES["dm_control"] = LATENT_CHANGES["pendulum"] = LATENT_CHANGES["car_racing"]


class FrameSkip(gym.Wrapper[Any, Any, Any, Any]):
    """Repeats each action and sums the rewards, as the RL Zoo's wrapper of that name does.

    Gymnasium's CarRacing spends most of a step on drawing, so the skipped frames, which nobody sees, are not
    drawn. If an episode ends at a skipped frame, the observation is the last frame that was drawn.
    """

    def __init__(self, env: gym.Env[Any, Any], skip: int) -> None:
        super().__init__(env)
        self.skip = skip

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total = 0.0
        for left in reversed(range(self.skip)):
            with undrawn(self.env.unwrapped) if left else nullcontext():
                obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


@contextmanager
def undrawn(env: gym.Env[Any, Any]) -> Iterator[None]:
    """Let Gymnasium's CarRacing return its last frame instead of drawing one; leave other environments."""
    if env.spec is None or not env.spec.id.startswith("CarRacing-"):
        yield
        return
    car: Any = env
    frame = car.state
    car._render = lambda mode: frame.copy()
    try:
        yield
    finally:
        del car._render  # which uncovers the method of its class


class Pedals(gym.ActionWrapper[Any, Any, Any]):
    """CarRacing with two actions: steering, and one axis for brake and gas, most of which is gas."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def action(self, action: Any) -> Any:
        pedal = 0.75 * action[1] + 0.25
        return np.array([action[0], max(pedal, 0.0), max(-pedal, 0.0)], np.float32)


class GiveUp(gym.Wrapper[Any, Any, Any, Any]):
    """Ends an episode after ``patience`` steps without a reward, and subtracts ``charge`` from its return."""

    def __init__(self, env: gym.Env[Any, Any], patience: int, charge: float) -> None:
        super().__init__(env)
        self.patience, self.charge = patience, charge
        self._idle = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._idle = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._idle = 0 if float(reward) > 0 else self._idle + 1
        if self._idle >= self.patience and not (terminated or truncated):
            return obs, float(reward) - self.charge, True, False, info
        return obs, reward, terminated, truncated, info


def env_id(game: str) -> str:
    """Return the Gymnasium id of a game: ``Pong`` becomes ``ALE/Pong-v5``, and an id stays as it is."""
    if game == "CarRacing":
        return "CarRacing-v3"
    if game.startswith("Vizdoom"):
        return f"vizdoom.gymnasium_wrapper:{game}"
    if game in ACTION_REPEATS:
        return "dm_suite:DMControl-v0"
    return game if "/" in game or ":" in game or "-v" in game else f"ALE/{game}-v5"


def family(game: str) -> Family:
    """Return the family of a game: CarRacing, ViZDoom, Pendulum, DMControl, or Atari for all others."""
    if game in ACTION_REPEATS:
        return "dm_control"
    if game.startswith("Vizdoom"):
        return "vizdoom"
    if game.startswith("Pendulum"):
        return "pendulum"
    return "car_racing" if "CarRacing" in game else "atari"


def stack(game: str, algorithm: Algorithm) -> int:
    """Return how many successive observations an agent sees."""
    if algorithm == "sac":
        return 3
    return 2 if family(game) == "car_racing" else 4


def make_env(game: str, algorithm: Algorithm = "ppo", training: bool = True) -> gym.Env[Any, Any]:
    """Make the environment that both arms share; its observations are RGB images.

    ALE's v5 games repeat an action for 4 frames without pooling, and in each frame they play the previous
    action with probability 0.25 (Machado et al. 2018); bundled encoders were trained on that. Hence this
    leaves out the frame skipping of SB3's Atari wrappers and keeps the RL Zoo's other wrappers. ``Monitor``
    is below those, so it records whole games and true rewards. The exception are SAC's training games in
    CarRacing, which end where :class:`GiveUp` ends them.
    """
    if family(game) == "vizdoom":
        doom = Monitor(open_env(env_id(game), {"frame_skip": VIZDOOM_SKIP}, "screen"))
        return TransformReward(doom, lambda reward: float(reward) * VIZDOOM_REWARD_SCALE)
    if family(game) == "pendulum":
        return Monitor(open_env(env_id(game), render=True))
    if family(game) == "dm_control":
        return Monitor(open_env(env_id(game), {"task": game, "repeat": ACTION_REPEATS[game]}))
    env = open_env(env_id(game))
    if algorithm == "sac":
        env = Monitor(GiveUp(env, PATIENCE, GIVEN_UP) if training else env)
        env = FrameSkip(Pedals(env), SAC_SKIP)
        return TransformReward(env, lambda reward: float(reward) * SAC_REWARD_SCALE)
    env = Monitor(env)
    if family(game) == "car_racing":
        return FrameSkip(env, PPO_SKIP)
    if env_id(game).startswith("ALE/"):
        env = EpisodicLifeEnv(NoopResetEnv(env, noop_max=30))
        meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        env = FireResetEnv(env) if "FIRE" in meanings else env
        env = ClipRewardEnv(env)
    return env


class RamState(gym.ObservationWrapper[Any, Any, Any]):
    """Shows where an ALE game's RAM has its agent and its small objects, such as the ball: what latents lack.

    Observations are bytes of the RAM, float32 in [-2, 2), as annotated in :mod:`latent_obs.evaluation.ram`.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        known = state_variables(env.unwrapped._game)  # type: ignore[attr-defined]
        places = [known.get(category, {}) for category in ("agent", "small_object")]
        self._addresses = [address for each in places for address in each.values()]
        self.observation_space = gym.spaces.Box(-2, 2, (len(self._addresses),), np.float32)

    def observation(self, observation: Any) -> Any:
        """Return the bytes in place of the image."""
        ram = self.unwrapped.ale.getRAM()[self._addresses]  # type: ignore[attr-defined]
        return ram.astype(np.float32) / 64 - 2


def make_state(game: str, algorithm: Algorithm = "ppo", training: bool = True) -> gym.Env[Any, Any]:
    """Make the environment of the arm on the true state, for ALE's annotated games."""
    return RamState(make_env(game, algorithm, training))


def make_pixels(game: str, algorithm: Algorithm = "ppo", training: bool = True) -> gym.Env[Any, Any]:
    """Make the environment of the pixel arm: that of :func:`make_env` with the standard preprocessing."""
    env = make_env(game, algorithm, training)
    if family(game) == "car_racing":
        return GrayscaleObservation(ResizeObservation(env, (64, 64)), keep_dim=True)
    return WarpFrame(env)


def make_venv(
    game: str,
    arm: Arm,
    encoder: str = "auto",
    n_envs: int | None = None,
    algorithm: Algorithm = "ppo",
    training: bool = True,
) -> VecEnv:
    """Make the environments of one arm, all in this process.

    Raises:
        ValueError: If the algorithm does not take the game's actions, or is not set up for them.
    """
    continuous = family(game) in ("car_racing", "pendulum", "dm_control")
    if algorithm == "sac" and not continuous:
        raise ValueError(
            f"SAC is set up for CarRacing, Pendulum and DMControl only, got {game}. Use --algorithm ppo."
        )
    if algorithm != "sac" and family(game) in ("pendulum", "dm_control"):
        raise ValueError(f"{game} is set up for SAC only, got {algorithm}. Use --algorithm sac.")
    if "dqn" in algorithm and continuous:
        raise ValueError(
            f"{algorithm.upper()} takes discrete actions, not those of {game}. Use --algorithm sac."
        )
    make = {"pixels": make_pixels, "state": make_state}.get(arm, make_env)
    venv: VecEnv = DummyVecEnv([lambda: make(game, algorithm, training)] * (n_envs or N_ENVS[algorithm]))
    if arm.startswith("latents"):
        venv = VecLatentObservation(venv, encoder, normalize=arm != "latents-raw")
    if family(game) == "car_racing" and algorithm == "ppo":
        venv = VecNormalize(venv, norm_obs=False, norm_reward=True)
    return VecFrameStack(venv, stack(game, algorithm))


def hyperparameters(
    game: str, arm: Arm, changes: dict[str, Any], algorithm: Algorithm = "ppo"
) -> dict[str, Any]:
    """Return the algorithm's arguments as JSON values, with the arm's changes and the given ones."""
    if family(game) == "pendulum":
        return {**PENDULUM_ARGUMENTS, **changes}
    if family(game) == "dm_control":
        updates = N_ENVS["sac"] * ACTION_REPEATS[game] // FRAMES_PER_UPDATE
        return {**DM_CONTROL_ARGUMENTS, "gradient_steps": updates, **changes}
    if algorithm != "ppo":
        return {**OFF_POLICY_ARGUMENTS[algorithm], **changes}
    for_arm = {} if arm == "pixels" else LATENT_CHANGES[family(game)]
    return {**PPO_ARGUMENTS[family(game)], **for_arm, **changes}


def make_model(
    arm: Arm, venv: VecEnv, arguments: dict[str, Any], seed: int, device: str, algorithm: Algorithm = "ppo"
) -> Model:
    """Make an untrained agent from :func:`hyperparameters`."""
    policy = "CnnPolicy" if arm == "pixels" else "MlpPolicy"
    # The copy is for SAC, which adds entries to the policy_kwargs that it is given.
    ready = {name: _schedule(deepcopy(value)) for name, value in arguments.items()}
    if "activation_fn" in arguments.get("policy_kwargs", {}):
        activation = getattr(nn, arguments["policy_kwargs"]["activation_fn"])
        ready["policy_kwargs"] = {**arguments["policy_kwargs"], "activation_fn": activation}
    return MODELS[algorithm](policy, venv, seed=seed, device=device, **ready)


def load_model(file: Any, venv: VecEnv | None, device: str, algorithm: Algorithm) -> Model:
    """Load an agent that was saved, as a path or a binary file."""
    with warnings.catch_warnings():
        # SB3 warns of the memory that it chose itself for returns over several steps.
        warnings.filterwarnings("ignore", "`n_steps=.* is ignored")
        return MODELS[algorithm].load(file, venv, device=device)


def _schedule(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("lin_"):
        return LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
    return value


def derived_seed(*numbers: int) -> int:
    """Return a seed that is far from the seeds derived from other numbers.

    SB3 seeds its environments with s, s + 1, ..., so the environments of runs 0 and 1 would overlap.
    """
    return int(np.random.default_rng(numbers).integers(2**31 - 1000))


# `latent-obs collect agents:AsTrained-v0` collects in the environment in which an agent was trained: wrappers
# there press fire for the agent, or repeat its actions.
gym.register("AsTrained-v0", "agents:make_env")
