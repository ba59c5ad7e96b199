"""RLlib, new API stack: an env-to-module connector that encodes all episodes of a step at once."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from ray.rllib.connectors.connector_v2 import ConnectorV2

from latent_obs.adapter import (
    EncoderLike,
    LatentStack,
    arrangement,
    as_rgb,
    encode_images,
    latent_space,
    open_named_encoder,
)


class LatentObservationConnector(ConnectorV2):
    """Replaces the image observations in single-agent episodes with latents.

    Does what :class:`latent_obs.LatentObservationWrapper` does in every environment, but once per
    environment runner, with the newest observations of all its episodes in one batch. Episodes, and
    hence replay buffers and learners, only ever hold latents. RLlib's ``MeanStdFilter`` goes after it;
    its ``FrameStacking`` takes images only, hence ``stack``.

    Args:
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it, but for ``"auto"``: a
            connector does not know its environment.
        stack: Latents of the last ``stack`` observations, oldest first, concatenated; an episode
            begins with its first latent in all places.
        key: The entry of a ``Dict`` observation to encode; the others stay as they are.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.
        **kwargs: ``input_observation_space`` and ``input_action_space``, which RLlib passes.

    Raises:
        ValueError: If ``encoder`` is ``"auto"`` or damaged or says otherwise than ``normalize``, the
            observations are no RGB images, or ``key`` does not fit.
        FileNotFoundError: If there is no such encoder.

    Example:
        >>> from ray.rllib.algorithms.ppo import PPOConfig
        >>> config = PPOConfig().env_runners(
        ...     env_to_module_connector=lambda env, spaces, device: LatentObservationConnector("pong-v0")
        ... )
    """

    def __init__(
        self,
        encoder: EncoderLike,
        *,
        stack: int = 1,
        key: str | None = None,
        normalize: bool | None = None,
        **kwargs: Any,
    ) -> None:
        # Before the base class, which asks for the output space.
        self.encoder = open_named_encoder(encoder, "LatentObservationConnector", normalize)
        self.stack, self.key = stack, key
        super().__init__(**kwargs)

    def recompute_output_observation_space(
        self, input_observation_space: gym.Space[Any], input_action_space: gym.Space[Any]
    ) -> gym.Space[Any]:
        """Return the space of latents.

        Raises:
            ValueError: If the observations are no RGB images, or ``key`` does not fit.
        """
        space = input_observation_space
        self._arranged = arrangement(self._entry(space) if self._has_key(space) else None)
        return latent_space(
            as_rgb(space, self.key), self.encoder, self.stack, self.key, "LatentObservationConnector"
        )

    def __call__(
        self, *, rl_module: Any, batch: dict[str, Any], episodes: list[Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Encode the newest observation of every episode, and put the latents in their place."""
        current = list(self.single_agent_episode_iterator(episodes))
        observations = [episode.get_observations(-1) for episode in current]
        latents = encode_images(self.encoder, [self._entry(obs) for obs in observations], self._arranged)
        stack = LatentStack(self.stack, self.encoder.latent_dim, len(current))
        for row, episode in enumerate(current):
            if episode.t:  # what is there already are latents
                stack.resume(row, self._entry(episode.get_observations(-2)))
        for episode, obs, stacked in zip(current, observations, stack.push(latents), strict=True):
            new = stacked if self.key is None else {**obs, self.key: stacked}
            episode.set_observations(at_indices=-1, new_data=new)
            episode.observation_space = self.observation_space
        return batch  # RLlib's own connector takes the observations from the episodes

    def _has_key(self, space: gym.Space[Any]) -> bool:
        return self.key is None or (isinstance(space, gym.spaces.Dict) and self.key in space.spaces)

    def _entry(self, obs: Any) -> Any:
        return obs if self.key is None else obs[self.key]
