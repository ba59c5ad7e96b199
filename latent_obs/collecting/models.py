"""Saved models that act during collection: ONNX files, and zips of Stable-Baselines3.

An ONNX file is data. A zip of Stable-Baselines3 holds pickles, which are programs: loading one runs them.
"""

from __future__ import annotations

import importlib
import io
import json
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import gymnasium as gym
import numpy as np

from latent_obs.adapter import LatentStack
from latent_obs.encoders.encoder import Encoder
from latent_obs.extras import needs
from latent_obs.frames import preprocess

SUFFIXES = (".onnx", ".zip")
# Algorithms by package that have a module of policies of their own, by which their models are known.
WITH_POLICIES = {"stable_baselines3": ("DQN", "SAC", "TD3"), "sb3_contrib": ("CrossQ", "QRDQN", "TQC")}
# Weights hardly compress. An archive that unpacks to more than both of these is made to fill the memory.
_MOST_RATIO, _MOST_BYTES = 20, 64_000_000


class _Latents:
    """What an agent on latents sees: the latest ones of an episode, as wrappers stack them.

    Args:
        encoder: What encodes the observations.
        size: Length of the agent's observation: a multiple of the encoder's ``latent_dim``.
    """

    def __init__(self, encoder: Encoder, size: int) -> None:
        self.encoder, self._stack = encoder, LatentStack(size // encoder.latent_dim, encoder.latent_dim)

    def reset(self) -> None:
        """Forget the past."""
        self._stack.begin()

    def push(self, obs: Any) -> Any:
        """Encode an observation and return the stack."""
        latent = self.encoder(preprocess(obs, self.encoder.frame_spec))
        return self._stack.push(latent[None])[0]


def _latents_for(path: Path, encoder: Encoder | None, wanted: str, shape: tuple[Any, ...]) -> _Latents | None:
    """Return the latents that a model takes; ``None`` where it takes observations."""
    if encoder is None:
        return None
    size = shape[0] if len(shape) == 1 else 0
    if not isinstance(size, int):  # a model for any length
        size = encoder.latent_dim
    if size == 0 or size % encoder.latent_dim:
        raise ValueError(
            f"The model {path} {wanted}, which holds no whole number of {encoder.latent_dim}-dimensional "
            f"latents of the encoder {encoder.ref}."
        )
    return _Latents(encoder, size)


class OnnxPolicy:
    """Acts with a model in an ONNX file, which contains no code.

    The model takes one batch of observations, or of latents where an encoder is given, and its first
    output says what to do: actions (integers for discrete spaces, numbers in the environment's units for
    boxes, where they are clipped to the bounds), or, for a ``Discrete`` space of n actions, n logits,
    from which an action is drawn.

    Args:
        path: The file.
        env: The environment that the model will act in.
        encoder: What the model's input are latents of; the length of the input says how many it stacks.

    Raises:
        ValueError: If the file is no ONNX model or does not fit the environment or the encoder.
        ImportError: If OpenVINO is not installed.
    """

    def __init__(self, path: Path, env: gym.Env[Any, Any], encoder: Encoder | None = None) -> None:
        # OpenVINO runs the encoder too: two runtimes in one process crashed it at a signal.
        from latent_obs.encoders.graph import compile_graph, read_onnx

        model = read_onnx(path)
        inputs = [(each.get_partial_shape(), each.get_element_type().to_dtype()) for each in model.inputs]
        self._path, self._space = path, env.action_space
        if len(inputs) != 1 or inputs[0][1] not in _TYPES or not len(inputs[0][0]):
            raise ValueError(
                f"The policy {path} must have one input, a batch of {', '.join(_TYPES)}, got "
                f"{', '.join(f'{dtype} of shape {shape}' for shape, dtype in inputs)}."
            )
        self._dtype = inputs[0][1]
        shape = tuple(None if each.is_dynamic else each.get_length() for each in list(inputs[0][0])[1:])
        self._request = compile_graph(model, "float32", 1)
        self._latents = _latents_for(path, encoder, f"has an input of shape {shape}", shape)
        seen = env.observation_space.shape or ()
        self._planar = (
            self._latents is None and not _fits(shape, seen) and _fits(shape, (*seen[2:], *seen[:2]))
        )
        if self._latents is None and not self._planar and not _fits(shape, seen):
            raise ValueError(
                f"The policy {path} takes observations of shape {shape}, the environment's have {seen}. "
                "If it acts on latents, name their encoder: --policy-encoder."
            )
        self._logits = False
        try:
            output = self._run(np.zeros(seen, env.observation_space.dtype))
        except Exception as error:
            raise ValueError(
                f"The policy {path} cannot act on a batch of one: {_first_line(error)}"
            ) from error
        self._check_output(output)

    def reset(self, seed: int) -> None:
        """Seed the drawing of actions and forget the stacked latents."""
        self._rng = np.random.default_rng(seed)
        if self._latents is not None:
            self._latents.reset()

    def act(self, obs: Any) -> Any:
        """Return the model's action, or draw one from its logits."""
        output, space = self._run(obs), self._space
        if not np.isfinite(output).all():
            raise ValueError(f"The policy {self._path} answered with a number that is not finite.")
        if isinstance(space, gym.spaces.Discrete):
            if not self._logits:
                return int(output.item())
            chances = np.exp(output.astype(np.float64) - output.max())
            return int(space.start + self._rng.choice(len(chances), p=chances / chances.sum()))
        assert space.shape is not None
        action = output.reshape(space.shape)
        if isinstance(space, gym.spaces.Box):
            action = np.clip(action, space.low, space.high)
        return action.astype(space.dtype)

    def _run(self, obs: Any) -> Any:
        if self._latents is not None:
            obs = self._latents.push(obs)
        obs = np.asarray(obs, self._dtype)
        if self._planar:
            obs = np.moveaxis(obs, -1, 0)
        self._request.infer([np.ascontiguousarray(obs[None])])
        return np.squeeze(self._request.get_output_tensor(0).data, 0).copy()

    def _check_output(self, output: Any) -> None:
        space, whole = self._space, np.issubdtype(output.dtype, np.integer)
        if isinstance(space, gym.spaces.Discrete):
            self._logits = not whole and output.shape == (space.n,)
            fits = self._logits or (whole and output.size == 1)
        else:
            fits = output.size == math.prod(space.shape or ()) and (
                isinstance(space, gym.spaces.Box) or whole
            )
        if not fits:
            raise ValueError(
                f"The first output of the policy {self._path} is {output.dtype} of shape {output.shape}: "
                f"neither an action of {space} nor, for a Discrete space, one logit for each action."
            )


_TYPES = ("float32", "float64", "uint8")


def _fits(wanted: tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    """Say whether a shape fits one of a model, in which a dimension of any length has a name."""
    return len(wanted) == len(shape) and all(
        not isinstance(w, int) or w == s for w, s in zip(wanted, shape, strict=True)
    )


class SB3Policy:
    """Acts with a saved Stable-Baselines3 model, sampling its actions.

    Loading a Stable-Baselines3 zip runs the pickles in it: only load files you trust. An
    :class:`OnnxPolicy` runs no code of its file.

    Args:
        path: A ``.zip`` written by ``model.save``.
        env: The environment that the model will act in; its spaces must be the model's.
        encoder: What the model's observations are latents of. The model then sees what
            :class:`~latent_obs.LatentObservationWrapper` would show it, with as many latents stacked as its
            observation space has room for. Its file does not say whether the latents were scaled, so
            the encoder must have the ``normalize`` of the training.

    Raises:
        ValueError: If the file is no whole Stable-Baselines3 zip, unpacks to a multiple of its size, or
            was trained on other spaces.
        ImportError: If Stable-Baselines3 is not installed, or sb3-contrib for a model of its algorithms.
    """

    def __init__(self, path: Path, env: gym.Env[Any, Any], encoder: Encoder | None = None) -> None:
        package, name = _sb3_algorithm(path)
        with needs(f"The policy {path}"):
            import stable_baselines3  # noqa: F401
        try:
            algorithm = getattr(importlib.import_module(package), name)
        except ImportError as error:
            raise ImportError(
                f"The policy {path} is a model of {name} and needs the package {package}, which is not "
                "installed: pip install sb3-contrib"
            ) from error
        try:
            with warnings.catch_warnings():
                # SB3 warns of the memory that it chose itself for returns over several steps.
                warnings.filterwarnings("ignore", "`n_steps=.* is ignored")
                self.model = algorithm.load(path, device="cpu")
        except Exception as error:  # whatever unpickling and torch make of damaged bytes
            raise ValueError(
                f"{path} is not a whole Stable-Baselines3 model: {_first_line(error)}"
            ) from error
        for name in ["action_space"] if encoder else ["observation_space", "action_space"]:
            wanted, got = getattr(self.model, name), getattr(env, name)
            if wanted != got:
                latents = " If it acts on latents, name their encoder: --policy-encoder."
                raise ValueError(
                    f"The model {path} was trained with the {name} {wanted}, the environment has {got}."
                    f"{latents if name == 'observation_space' else ''}"
                )
        space = self.model.observation_space
        shape = space.shape if isinstance(space, gym.spaces.Box) else ()
        self._latents = _latents_for(path, encoder, f"was trained with the observation_space {space}", shape)

    def reset(self, seed: int) -> None:
        """Seed the model's sampling and forget the stacked latents."""
        self.model.set_random_seed(seed)
        if self._latents is not None:
            self._latents.reset()

    def act(self, obs: Any) -> Any:
        """Sample an action from the model."""
        if self._latents is not None:
            obs = self._latents.push(obs)
        return self.model.predict(obs, deterministic=False)[0]


def warn_of_pickles(path: str) -> None:
    """Warn that loading a Stable-Baselines3 zip runs code, before it is loaded."""
    warnings.warn(
        f"Loading the policy {path} runs code that is in the file (pickles): use only models that you made "
        "or trust. A policy in an ONNX file runs none: --policy agent.onnx.",
        UserWarning,
        stacklevel=2,
    )


def _sb3_algorithm(path: Path) -> tuple[str, str]:
    """Return package and class of a saved model from the JSON in its zip, which needs no unpickling."""
    try:
        with open(path, "rb") as file:
            _refuse_bomb(path, file, path.stat().st_size)
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        module, clips = data["policy_class"]["__module__"], "clip_range" in data
    except _BombError:
        raise
    except Exception as error:  # zipfile, zlib, json and struct raise about ten types
        raise ValueError(f"{path} is not a model saved by Stable-Baselines3: {_first_line(error)}") from error
    if module == "stable_baselines3.common.policies":
        return "stable_baselines3", "PPO" if clips else "A2C"
    for package, names in WITH_POLICIES.items():
        for name in names:
            if module == f"{package}.{name.lower()}.policies":
                return package, name
    known = ", ".join(["A2C", "PPO", *(name for names in WITH_POLICIES.values() for name in names)])
    raise ValueError(f"{path} holds a policy of {module}. Take a model of {known}, or an ONNX file.")


class _BombError(ValueError):
    pass


def _refuse_bomb(path: Path, file: BinaryIO, size: int) -> None:
    """Refuse an archive, or one of torch's inside it, that unpacks to far more than it is long.

    An entry cannot unpack to more than it declares: zipfile and torch stop there.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > max(_MOST_BYTES, _MOST_RATIO * size):
            raise _BombError(
                f"{path} has {size:,} bytes and would unpack to {unpacked:,}, as no saved model does. "
                "It was not unpacked."
            )
        for entry in entries:
            if entry.filename.endswith(".pth"):
                inner = archive.read(entry)
                if zipfile.is_zipfile(io.BytesIO(inner)):
                    _refuse_bomb(path, io.BytesIO(inner), len(inner))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
