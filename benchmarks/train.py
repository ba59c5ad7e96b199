"""How fast does training run, beside an eager float32 loop and beside pythae's trainer?

$ python benchmarks/train.py               # about 10 min on 2 cores, beside the eager loop
$ python benchmarks/train.py --smallest    # about 20 s

With pythae, which pins old versions of other packages and is hence kept apart:

$ pip install --no-deps --target pythae pythae==0.1.2 scipy
$ PYTHONPATH=pythae TQDM_DISABLE=1 python benchmarks/train.py

Frames a second of one thread, in CPU time, which other programs on the machine disturb little. The trainers
take turns, each in its own process. They have the same layers and batches and take the same kind of step:
forward, backward, Adam.

- eager: the loop of the World Models ports (ctallec/world-models): contiguous float32 images, sigmoid,
  summed squared error + KL. Its batches are in memory; decoding them is not counted.
- pythae, where it is installed: `BaseTrainer.train_step` with those layers as its encoder and decoder, its
  dataset in memory.
- latent_obs: the steps of `train_vae` with the default options, batches read from Parquet.

Before anything is timed, loss and gradients of the eager loop and of latent_obs' layers must be the same.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from machine import machine
from torch import Tensor, nn

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import VAEConfig
from latent_obs.encoders.provenance import Run
from latent_obs.training.config import TrainConfig
from latent_obs.training.distributed import choose_precision, make_fabric
from latent_obs.training.objective import terms
from latent_obs.training.run import TrainingRun
from latent_obs.vae import VAE

LATENT_DIM = 32


@dataclass(frozen=True)
class Args:
    """Time training."""

    frames: Path | None = None
    """frames folder; default: 4,000 frames of Pong, collected first"""
    batches: tuple[int, ...] = (64, 128)
    rounds: int = 5
    steps: int = 4
    """steps in a turn"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


NETWORKS: tuple[tuple[int, ...], ...] = ((32, 64, 128), (32, 64, 128, 256))


class EagerEncoder(nn.Module):
    """Convolutions down, then mean and log-variance."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        features = math.prod(VAEConfig(LATENT_DIM, channels).feature_shape)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise((3, *channels)))
        self.mean, self.log_variance = nn.Linear(features, LATENT_DIM), nn.Linear(features, LATENT_DIM)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        mean: Tensor = self.mean(x)
        log_variance: Tensor = self.log_variance(x)
        return mean, log_variance


class EagerDecoder(nn.Module):
    """Transposed convolutions up, then a sigmoid."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = VAEConfig(LATENT_DIM, channels).feature_shape
        self.linear = nn.Linear(LATENT_DIM, math.prod(self.shape))
        widths = (3, *channels)[::-1]
        self.convs = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))

    def forward(self, z: Tensor) -> Tensor:
        x: Tensor = self.linear(z).view(-1, *self.shape)
        for conv in self.convs:
            x = conv(F.relu(x))
        decoded: Tensor = x.sigmoid()
        return decoded


def eager_loss(encoder: EagerEncoder, decoder: EagerDecoder, images: Tensor, noise: Tensor) -> Tensor:
    """Squared error + KL, summed over the batch."""
    mean, log_variance = encoder(images)
    decoded = decoder(mean + noise * (log_variance / 2).exp())
    kl = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum()
    loss: Tensor = F.mse_loss(decoded, images, reduction="sum") + kl
    return loss


def eager_steps(channels: tuple[int, ...], batches: list[Tensor]) -> Callable[[], None]:
    encoder, decoder = EagerEncoder(channels), EagerDecoder(channels)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])

    def run() -> None:
        for images in batches:
            noise = torch.randn(len(images), LATENT_DIM)
            loss = eager_loss(encoder, decoder, images, noise)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return run


def pythae_steps(channels: tuple[int, ...], batches: list[Tensor], out: Path) -> Callable[[], None]:
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE as PythaeVAE
    from pythae.models import VAEConfig as PythaeConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.eager = EagerEncoder(channels)

        def forward(self, x: Tensor) -> Any:
            mean, log_variance = self.eager(x)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.eager = EagerDecoder(channels)

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.eager(z))

    images, size = torch.cat(batches), len(batches[0])
    trainer = BaseTrainer(
        PythaeVAE(PythaeConfig(input_dim=(3, 64, 64), latent_dim=LATENT_DIM), Encoder(), Decoder()),
        BaseDataset(images, torch.zeros(len(images))),
        training_config=BaseTrainerConfig(
            output_dir=str(out), per_device_train_batch_size=size, learning_rate=1e-3, no_cuda=True
        ),
    )
    trainer.prepare_training()
    epochs = itertools.count(1)
    return lambda: trainer.train_step(next(epochs))


def our_steps(channels: tuple[int, ...], data: Path, size: int, count: int, out: Path) -> Callable[[], None]:
    folder = FramesFolder(data)
    # The others do not normalise, so ours does not here: the same network, step by step.
    config = TrainConfig(data, out, channels=channels, batch_size=size, steps=1_000_000, batch_norm=False)
    training = TrainingRun(make_fabric(1, 1, choose_precision("auto")[0]), config, folder, Run({}, {}, None))
    batches = folder.batches_and_foreground(size, training.medians, training.episodes)

    def run() -> None:
        for _ in range(count):
            training.take_step(*map(torch.from_numpy, next(batches)))

    return run


def serve(pipe: Any, trainer: str, channels: tuple[int, ...], data: Path, size: int, count: int) -> None:
    """Be one trainer in a process of its own: take ``count`` steps when asked, answer their CPU time."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        if trainer == "latent_obs":
            run = our_steps(channels, data, size, count, Path(scratch))
        else:
            stream = FramesFolder(data).batches(size)
            batches = [as_batch(torch.from_numpy(next(stream))) for _ in range(count)]
            if trainer == "eager":
                run = eager_steps(channels, batches)
            else:
                run = pythae_steps(channels, batches, Path(scratch))
        while pipe.recv():
            begun = time.process_time()
            run()
            pipe.send(time.process_time() - begun)


def assert_same_gradients(channels: tuple[int, ...], frames: Tensor) -> None:
    """Compare latent_obs' layers with the eager ones, in the order of memory that each trains in."""
    ours = VAE(VAEConfig(LATENT_DIM, channels)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    encoder, decoder = EagerEncoder(channels), EagerDecoder(channels)
    state = ours.state_dict()
    for theirs, part in ((encoder, "encoder."), (decoder, "decoder.")):
        own = {}
        for name in theirs.state_dict():
            source = f"{part}{name.replace('convs.', 'conv')}"
            own[name] = state.get(source if source in state else name, torch.zeros(3))  # no last bias
        theirs.load_state_dict(own)
    noise = torch.randn(len(frames), LATENT_DIM)
    parts = terms(ours, frames, noise)
    loss = (parts.squared_error + parts.kl.sum(1)).sum()
    expected = eager_loss(encoder, decoder, as_batch(frames), noise)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    for i, conv in enumerate(encoder.convs):
        compare(ours.encoder.get_submodule(f"conv{i}"), conv)
    for i, conv in enumerate(decoder.convs):
        compare(ours.decoder.get_submodule(f"conv{i}"), conv)
    compare(ours.decoder.get_submodule("linear"), decoder.linear)
    compare(ours.mean, encoder.mean)


def compare(module: nn.Module, expected: nn.Module) -> None:
    others = dict(expected.named_parameters())
    for name, parameter in module.named_parameters():
        gradient = others[name].grad
        assert parameter.grad is not None
        assert gradient is not None
        scale = float(gradient.abs().max())
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4 * scale)


def as_batch(frames: Tensor) -> Tensor:
    """Turn frames into the contiguous float32 images that the other two train on."""
    return frames.permute(0, 3, 1, 2).contiguous().float() / 255


def trainers() -> list[str]:
    """Return what can be timed here; pythae only where it can be imported."""
    try:
        importlib.import_module("pythae.trainers")
    except ImportError as error:
        print(f"# without pythae, which is not installed ({error}): the head of this file says how")
        return ["eager", "latent_obs"]
    return ["eager", "pythae", "latent_obs"]


def time_trainers(
    names: list[str], data: Path, channels: tuple[int, ...], size: int, args: Args
) -> dict[str, list[float]]:
    """Let the trainers take turns; return frames a second of each turn."""
    context = multiprocessing.get_context("spawn")
    processes = {}
    for trainer in names:
        pipe, theirs = context.Pipe()
        arguments = (theirs, trainer, channels, data, size, args.steps)
        processes[trainer] = pipe, context.Process(target=serve, args=arguments, daemon=True)
        processes[trainer][1].start()
    rates: dict[str, list[float]] = {trainer: [] for trainer in names}
    for turn in range(args.rounds + 1):
        for trainer, (pipe, _) in processes.items():
            pipe.send(True)
            seconds = pipe.recv()
            if turn:  # the first is to warm up
                rates[trainer].append(size * args.steps / seconds)
    for pipe, process in processes.values():
        pipe.send(False)
        process.join()
    return rates


def main(args: Args) -> None:
    torch.set_num_threads(1)
    networks, frames = NETWORKS, 4000
    if args.smallest:
        args, networks, frames = replace(args, batches=(16,), rounds=1, steps=1), ((4, 8),), 200
    names = trainers()
    print(f"# {machine('torch', *(name for name in names if name == 'pythae'))}")
    chosen, reason = choose_precision("auto")
    print(f"# latent_obs in {chosen}, which --precision auto takes because {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        data = args.frames
        if data is None:
            data = Path(scratch) / "frames"
            kwargs = {"max_num_frames_per_episode": 400}  # several episodes, however few frames there are
            collection = CollectConfig(
                "ALE/Pong-v5", data, frames=frames, env_kwargs=kwargs, workers=1, shard_rows=1000
            )
            collect_frames(collection, progress=False)
        same = torch.from_numpy(FramesFolder(data).sample(16))
        for channels in networks:
            assert_same_gradients(channels, same)
        print("# loss and gradients in float32 equal the eager loop's")
        others = [name for name in names if name != "latent_obs"]
        versus = "".join(f"{f'vs {other}':>11}" for other in others)
        print(f"network         batch  trainer       frames/s     min     max{versus}")
        for channels, size in itertools.product(networks, args.batches):
            rates = time_trainers(names, data, channels, size, args)
            middle = {trainer: statistics.median(rate) for trainer, rate in rates.items()}
            for trainer, rate in rates.items():
                line = f"{'-'.join(map(str, channels)):14} {size:6}  {trainer:12}"
                line += f" {middle[trainer]:9.0f} {min(rate):7.0f} {max(rate):7.0f}"
                for other in others:
                    line += f" {middle[trainer] / middle[other]:9.2f}x"
                print(line, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
