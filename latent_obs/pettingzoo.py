"""PettingZoo parallel environments: latents for all agents of a step in one batch."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from latent_obs.adapter import EncoderLike, check_is_env, open_named_encoder
from latent_obs.encoders.folder import Latents
from latent_obs.entries import ImageEntries
from latent_obs.extras import needs

with needs("latent_obs.pettingzoo", "pettingzoo"):
    from pettingzoo import ParallelEnv
    from pettingzoo.utils.wrappers import BaseParallelWrapper


class LatentObservationWrapper(BaseParallelWrapper[Any, Any, Any]):
    """Replaces every agent's image observation with a latent.

    Does what :class:`latent_obs.LatentObservationWrapper` does for each agent, with one encoder and
    with the observations of all agents of a step in one batch.

    Args:
        env: A parallel environment. Each agent's observations are images as
            :class:`latent_obs.LatentObservationWrapper` takes them.
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it, but for ``"auto"``: no
            encoder is bundled for PettingZoo's environments.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.

    Raises:
        ValueError: If ``env`` is of another kind, an agent's observations are no images or can be read in
            two ways, the encoder is damaged, or ``encoder`` says otherwise than ``normalize``.
        FileNotFoundError: If there is no such encoder.
    """

    def __init__(
        self, env: ParallelEnv[Any, Any, Any], encoder: EncoderLike, *, normalize: bool | None = None
    ) -> None:
        check_is_env(env, ParallelEnv, "pettingzoo.LatentObservationWrapper")
        self.encoder = open_named_encoder(encoder, "LatentObservationWrapper", normalize)
        super().__init__(env)
        self._agents = {
            agent: ImageEntries(env.observation_space(agent), self.encoder, who=f"Agent {agent!r}")
            for agent in env.possible_agents
        }

    def observation_space(self, agent: Any) -> gym.spaces.Space[Any]:
        """Return the space of an agent's latents."""
        return self._agents[agent].space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Latents], dict[Any, dict[str, Any]]]:
        """Reset the environment and encode every agent's observation."""
        obs, infos = self.env.reset(seed=seed, options=options)
        return self._encode(obs), infos

    def step(self, actions: dict[Any, Any]) -> tuple[dict[Any, Any], Any, Any, Any, Any]:
        """Step the environment and encode every agent's observation, final ones included."""
        obs, *rest = self.env.step(actions)
        return (self._encode(obs), *rest)

    def _encode(self, obs: dict[Any, Any]) -> dict[Any, Latents]:
        frames = [self._agents[agent].frame(image) for agent, image in obs.items()]
        if not frames:
            return {}  # every agent is done
        return dict(zip(obs, self.encoder(np.stack(frames)), strict=True))
