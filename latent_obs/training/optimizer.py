"""The optimiser of a training run: Adam, or Muon with Adam for what is no matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn


class Optimizer:
    """Steps the parameters of a model, and keeps its state under their names.

    Muon makes the steps of a weight matrix orthogonal, so that rare directions, such as those of a small
    object, move as fast as common ones. A convolution's kernel counts as the matrix from all its inputs to
    its outputs. Biases and normalisations are no matrices: Adam steps them.

    Args:
        model: The model, where it will stay, with kernels in the memory order ``channels_last``.
        kind: ``"adam"`` or ``"muon"``.
        learning_rate: The learning rate of the first step.

    Raises:
        ImportError: If this torch is too old to have Muon.

    Source: Kingma & Ba (2015), "Adam"; Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural
    networks", with steps scaled as in Liu et al. (2025), "Muon is scalable for LLM training".
    """

    def __init__(self, model: nn.Module, kind: Literal["adam", "muon"], learning_rate: float) -> None:
        named = dict(model.named_parameters())
        # The decoder's image of biases has the dimensions of kernels, but is none.
        kernels = {n: p for n, p in named.items() if kind == "muon" and p.dim() > 1 and n != "output_bias"}
        self._plain = {name: parameter for name, parameter in named.items() if name not in kernels}
        self._kernels = list(kernels.values())
        self._matrices = {name: nn.Parameter(_matrix(kernel)) for name, kernel in kernels.items()}
        self._adam = torch.optim.Adam(self._plain.values(), learning_rate, fused=True)
        self._muon: torch.optim.Optimizer | None = None
        if kind == "muon":
            if not hasattr(torch.optim, "Muon"):
                raise ImportError(
                    f"optimizer='muon' needs torch 2.9 or newer, found {torch.__version__}. Install it "
                    "(pip install 'torch>=2.9'), or take optimizer='adam'."
                )
            self._muon = torch.optim.Muon(
                self._matrices.values(), learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in (*self._plain.values(), *self._kernels):
            parameter.grad = None

    def step(self, learning_rate: float) -> None:
        """Take a step along the parameters' gradients."""
        for kernel, matrix in zip(self._kernels, self._matrices.values(), strict=True):
            matrix.grad = None if kernel.grad is None else _matrix(kernel.grad)
        for optimizer in (self._adam, self._muon):
            if optimizer is not None:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state: moments and step counts under the names of their parameters."""
        adam = {
            f"adam.{name}.{key}": value
            for name, parameter in self._plain.items()
            for key, value in self._adam.state[parameter].items()
        }
        if self._muon is None:
            return adam
        moments = {
            f"muon.{name}": self._muon.state[matrix]["momentum_buffer"]
            for name, matrix in self._matrices.items()
            if matrix in self._muon.state
        }
        return adam | moments

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`tensors` returned after at least one step.

        Raises:
            KeyError, RuntimeError: If a tensor is missing or has another shape than its parameter.
        """
        state = self._adam.state_dict()
        for index, (name, parameter) in enumerate(self._plain.items()):
            # The fused optimiser walks through memory, so moments must lie as their parameter does.
            moments = {
                key: torch.empty_like(parameter).copy_(tensors[f"adam.{name}.{key}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            state["state"][index] = {"step": tensors[f"adam.{name}.step"], **moments}
        self._adam.load_state_dict(state)
        if self._muon is not None:
            for name, matrix in self._matrices.items():
                moment = torch.empty_like(matrix).copy_(tensors[f"muon.{name}"])
                self._muon.state[matrix] = {"momentum_buffer": moment}


def _matrix(kernel: Tensor) -> Tensor:
    """Return the memory of a kernel as a matrix with a row for each index of its first axis."""
    kernel = kernel.detach()
    # The first step orders a gradient's memory as it likes; a parameter's is never copied.
    return kernel.permute(0, 2, 3, 1).flatten(1) if kernel.dim() == 4 else kernel
