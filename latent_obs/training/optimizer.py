"""The optimiser of a training run: Adam, or Muon with Adam for what is no matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

# Of Muon: how much of the momentum stays at each step, and the polynomial that is applied five times.
MOMENTUM = 0.95
POLYNOMIAL = (3.4445, -4.7750, 2.0315)
TIMES = 5


class Optimizer:
    """Steps the parameters of a model, and keeps its state under their names.

    Muon makes the steps of a weight matrix orthogonal, so that rare directions, such as those of a small
    object, move as fast as common ones. A convolution's kernel counts as the matrix from all its inputs to
    its outputs. Biases and normalisations are no matrices: Adam steps them.

    Args:
        model: The model, where it will stay, with kernels in the memory order ``channels_last``, as a VAE has
            them.
        kind: ``"adam"`` or ``"muon"``.
        learning_rate: The learning rate of the first step.

    Source: Kingma & Ba (2015), "Adam"; Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural
    networks", with steps scaled as in Liu et al. (2025), "Muon is scalable for LLM training".
    """

    def __init__(self, model: nn.Module, kind: Literal["adam", "muon"], learning_rate: float) -> None:
        named = dict(model.named_parameters())
        # The decoder's image of biases has the dimensions of kernels, but is none.
        self._kernels = {
            n: p for n, p in named.items() if kind == "muon" and p.dim() > 1 and n != "output_bias"
        }
        self._momenta = {name: torch.zeros_like(_matrix(kernel)) for name, kernel in self._kernels.items()}
        self._plain = {name: parameter for name, parameter in named.items() if name not in self._kernels}
        self._adam = torch.optim.Adam(self._plain.values(), learning_rate, fused=True)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in (*self._plain.values(), *self._kernels.values()):
            parameter.grad = None

    def step(self, learning_rate: float) -> None:
        """Take a step along the parameters' gradients."""
        for group in self._adam.param_groups:
            group["lr"] = learning_rate
        self._adam.step()
        self._step_kernels(learning_rate)

    @torch.no_grad()
    def _step_kernels(self, learning_rate: float) -> None:
        """Take Muon's step.

        torch's own Muon multiplies whole matrices in each of its ten multiplications, which made it a third
        of a training step. Here they are squares of the smaller side, those of one size at once.
        """
        updates: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for name, kernel in self._kernels.items():
            if kernel.grad is None:
                continue
            weights, gradient, momentum = _matrix(kernel), _matrix(kernel.grad), self._momenta[name]
            momentum.lerp_(gradient, 1 - MOMENTUM)
            update = gradient.lerp(momentum, MOMENTUM)
            if len(update) > update.shape[1]:
                weights, update = weights.T, update.T
            updates.setdefault(len(update), []).append((weights, update))
        for same in updates.values():
            roots = inverse_roots(torch.stack([update @ update.T for _, update in same]))
            for (weights, update), root in zip(same, roots, strict=True):
                weights.addmm_(root, update, alpha=-0.2 * learning_rate * max(update.shape) ** 0.5)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state: moments and step counts under the names of their parameters."""
        adam = {
            f"adam.{name}.{key}": value
            for name, parameter in self._plain.items()
            for key, value in self._adam.state[parameter].items()
        }
        return adam | {f"muon.{name}": momentum for name, momentum in self._momenta.items()}

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
        for name, momentum in self._momenta.items():
            momentum.copy_(tensors[f"muon.{name}"])


def inverse_roots(grams: Tensor) -> Tensor:
    """Return about the inverse square roots of matrices, as Muon's polynomial approaches them.

    Where M is a matrix and G = M M^T, the inverse root of G times M has the singular vectors of M, and
    singular values that are all near 1.

    Args:
        grams: Each symmetric, without negative eigenvalues, shape (N, size, size).

    Returns:
        Of the same shape.

    Example:
        >>> root = inverse_roots(torch.diag(torch.tensor([4.0, 9.0]))[None])[0]
        >>> [round(float(x), 1) for x in (root @ torch.tensor([2.0, 3.0]))]
        [0.7, 1.1]
    """
    a, b, c = POLYNOMIAL
    scale = grams.diagonal(dim1=1, dim2=2).sum(1)[:, None, None].clamp(min=1e-14)
    gram, root = grams / scale, scale.rsqrt() * torch.eye(grams.shape[-1], device=grams.device)
    for _ in range(TIMES):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        gram, root = factor @ gram @ factor, factor @ root
    return root


def _matrix(kernel: Tensor) -> Tensor:
    """Return the memory of a kernel as a matrix with a row for each index of its first axis."""
    kernel = kernel.detach()
    # The first step orders a gradient's memory as it likes; a parameter's is never copied.
    return kernel.permute(0, 2, 3, 1).flatten(1) if kernel.dim() == 4 else kernel
