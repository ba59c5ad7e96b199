"""RLlib, new API stack: an env-to-module connector that encodes all episodes of a step at once."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from latent_obs.adapter import EncoderLike, Key, open_named_encoder
from latent_obs.entries import ImageEntries
from latent_obs.extras import needs

with needs("latent_obs.rllib", "rllib"):
    from ray.rllib.connectors.connector_v2 import ConnectorV2


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
        key: As :class:`latent_obs.LatentObservationWrapper` takes it.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.
        **kwargs: ``input_observation_space`` and ``input_action_space``, which RLlib passes.

    Raises:
        ValueError: If ``encoder`` is ``"auto"`` or damaged or says otherwise than ``normalize``, the
            observations are no images, or ``key`` does not fit.
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
        key: Key = None,
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
            ValueError: If the observations are no images, or ``key`` does not fit.
        """
        self._entries = ImageEntries(
            input_observation_space,
            self.encoder,
            key=self.key,
            stack=self.stack,
            who="LatentObservationConnector",
        )
        return self._entries.space

    def __call__(
        self, *, rl_module: Any, batch: dict[str, Any], episodes: list[Any], **kwargs: Any
    ) -> dict[str, Any]:
        """Encode the newest observation of every episode, and put the latents in their place."""
        current = list(self.single_agent_episode_iterator(episodes))
        observations = [episode.get_observations(-1) for episode in current]
        images = zip(*map(self._entries.images, observations), strict=True)
        latents = self._entries.encode([list(batch) for batch in images])
        stacks = self._entries.stacks(len(current))
        for row, episode in enumerate(current):
            if episode.t:  # what is there already are latents
                before = self._entries.images(episode.get_observations(-2))
                for stack, entry in zip(stacks, before, strict=True):
                    stack.resume(row, entry)
        stacked = [stack.push(each) for stack, each in zip(stacks, latents, strict=True)]
        for row, (episode, obs) in enumerate(zip(current, observations, strict=True)):
            new = self._entries.put(obs, [entry[row] for entry in stacked])
            episode.set_observations(at_indices=-1, new_data=new)
            episode.observation_space = self.observation_space
        return batch  # RLlib's own connector takes the observations from the episodes
