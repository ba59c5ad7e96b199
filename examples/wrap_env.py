"""See Pong as 32 numbers.

$ python examples/wrap_env.py     # about 3 s on 2 cores
Box(-inf, inf, (32,), float32)
(32,) float32
"""

import ale_py
import gymnasium as gym

from latent_obs import LatentObservationWrapper

gym.register_envs(ale_py)
env = LatentObservationWrapper(gym.make("ALE/Pong-v5"))
print(env.observation_space)
obs, info = env.reset(seed=0)
for _ in range(100):
    obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
    if terminated or truncated:
        obs, info = env.reset()
print(obs.shape, obs.dtype)
env.close()
