"""What does a worker that wraps cost before its first step: time and memory?

$ python benchmarks/start.py     # about 1 min on 2 cores

Each figure is the median of fresh processes that take turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import dataclass, replace

import tyro
from machine import machine

MEASURE = """
import time
begun = time.perf_counter()
{code}
spent = time.perf_counter() - begun
with open("/proc/self/status") as file:
    rss = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
print(spent * 1e3, rss / 1024)
"""
ENV = """
import ale_py, gymnasium as gym
ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
gym.register_envs(ale_py)
env = gym.make("ALE/Pong-v5")
"""
CASES = {
    "import gymnasium": "import gymnasium",
    "import latent_obs": "import latent_obs",
    "bare env, first observation": ENV + "env.reset(seed=0)",
    "wrapped env, first observation": ENV
    + "from latent_obs import LatentObservationWrapper\nLatentObservationWrapper(env).reset(seed=0)",
    "eager PyTorch, first observation": ENV
    + """
import cv2, torch
from latent_obs.vae import load_vae
vae, _ = load_vae("pong-v0")
obs, _ = env.reset(seed=0)
with torch.no_grad():
    vae(torch.from_numpy(cv2.resize(obs, (64, 64), interpolation=cv2.INTER_AREA)).unsqueeze(0))
""",
    "import torch, nothing else": "import torch",
}


@dataclass(frozen=True)
class Args:
    """Measure starts."""

    rounds: int = 7
    """processes of each kind whose median counts; one more warms the disk's cache and ours"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, rounds=1)
    print(f"# {machine('torch', 'openvino', 'ale-py', 'gymnasium')}")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(args.rounds + 1):  # the first round warms the disk's cache
        for name, code in CASES.items():
            command = [sys.executable, "-c", MEASURE.format(code=code)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            spent, rss = map(float, run.stdout.split())
            found[name].append((spent, rss))
    print("                                       ms    MiB")
    time_of, memory_of = {}, {}
    for name, samples in found.items():
        time_of[name] = statistics.median(spent for spent, _ in samples[1:])
        memory_of[name] = statistics.median(rss for _, rss in samples[1:])
        print(f"{name:34} {time_of[name]:6.0f} {memory_of[name]:6.0f}")
    imports = time_of["import latent_obs"] / time_of["import gymnasium"]
    start = time_of["wrapped env, first observation"] / time_of["bare env, first observation"]
    wrapped = memory_of["wrapped env, first observation"]
    memory = wrapped / memory_of["eager PyTorch, first observation"]
    print(f"import latent_obs / import gymnasium: {imports:.2f}x")
    print(f"first observation, wrapped / bare: {start:.2f}x")
    print(f"resident memory, wrapped / eager PyTorch: {memory:.2f}x")


if __name__ == "__main__":
    main(tyro.cli(Args))
