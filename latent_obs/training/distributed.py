"""The processes that train together: started by Lightning Fabric, or by torchrun or SLURM before us."""

from __future__ import annotations

import atexit
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch

from latent_obs.data import shuffle

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
Computed = Literal["float32", "bfloat16"]


def make_fabric(devices: int, num_nodes: int, precision: Computed) -> Fabric:
    """Set up Fabric for the GPUs of this machine or, where there are none, for processes on its CPU.

    Args:
        devices: Processes on this machine, one for each GPU. Under ``torchrun`` its own numbers of processes
            and machines count instead.
        num_nodes: Machines.
        precision: ``"bfloat16"``: matrix products and convolutions run in bfloat16; weights and sums stay
            float32.

    Raises:
        ValueError: If there are fewer GPUs than ``devices``.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    # Fabric would announce the precision, which the program says itself, with the reason.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    cuda = torch.cuda.is_available()
    started = TorchElasticEnvironment.detect()
    if started:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    if cuda and devices > torch.cuda.device_count():
        raise ValueError(f"There are {torch.cuda.device_count()} GPUs, fewer than --devices {devices}.")
    strategy = "auto"
    if devices * num_nodes > 1:
        strategy = "ddp" if started or SLURMEnvironment.detect() else "ddp_spawn"
    return Fabric(
        accelerator="cuda" if cuda else "cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        precision="bf16-mixed" if precision == "bfloat16" else "32-true",
    )


def join(fabric: Fabric) -> None:
    """Let the processes that torchrun or SLURM started find each other; others are not started yet."""
    if not _starts_processes(fabric):
        atexit.register(_leave_group)  # not sooner, for the group cannot be made twice in one place
        fabric.launch()


def _starts_processes(fabric: Fabric) -> bool:
    from lightning_fabric.strategies.launchers.multiprocessing import _MultiProcessingLauncher

    return isinstance(fabric.strategy.launcher, _MultiProcessingLauncher)


def launch(fabric: Fabric, function: Callable[..., T], *arguments: Any) -> T:
    """Call ``function(fabric, *arguments)`` in every process and return what the first one returns.

    Args:
        fabric: From :func:`make_fabric`, after :func:`join`.
        function: A module's function; it and its arguments travel by pickle where Fabric starts
            the processes.
        arguments: What else it is called with.

    Raises:
        Exception: Whatever ``function`` raised, as if it had run here.
        RuntimeError: If a process that Fabric started was killed.
        KeyboardInterrupt: If a signal arrived before the processes were ready to stop by themselves.
    """
    from torch.multiprocessing.spawn import ProcessExitedException

    if not _starts_processes(fabric):
        return function(fabric, *arguments)
    # Our children stop when told to and say so; here the signals only have to reach them.
    told: list[int] = []

    def tell(number: int, _: Any) -> None:
        told.append(number)
        for child in multiprocessing.active_children():
            child.terminate()

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {s: signal.signal(s, tell) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        # Fabric looks into data classes on their way, and refuses frozen ones: it gets a function and bytes.
        outcome = pickle.loads(fabric.launch(partial(_call, function, arguments)))
    except ProcessExitedException as error:
        if told:  # before it listened
            raise KeyboardInterrupt from error
        raise RuntimeError(f"One of the training processes was killed: {error}.") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if isinstance(outcome, Exception):
        raise outcome
    returned: T = outcome
    return returned


def _call(function: Callable[..., Any], arguments: tuple[Any, ...], fabric: Fabric) -> bytes:
    """Call and pickle the result; an error is returned, because one that is raised would arrive as text."""
    try:
        outcome = function(fabric, *arguments)
    except Exception as error:
        outcome = error
    _leave_group()
    return pickle.dumps(outcome)


def _leave_group() -> None:
    """Leave the group of processes; at the interpreter's exit, when others are gone, that may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sum_over_processes(fabric: Fabric, tensors: list[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one exchange."""
    if fabric.world_size == 1:
        return
    summed = fabric.all_reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduce_op="sum")
    assert isinstance(summed, torch.Tensor)
    parts = torch.split(summed, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def share(fabric: Fabric, total: int) -> slice:
    """Return the rows of a batch of ``total`` that this process takes."""
    return shuffle.share(total, fabric.global_rank, fabric.world_size)


def read_once(fabric: Fabric, read: Callable[[], T]) -> T:
    """Return in every process what the first one reads; before processes are started, there is this one."""
    if fabric.world_size == 1 or not torch.distributed.is_initialized():
        return read()
    return cast("T", fabric.broadcast(read() if fabric.is_global_zero else None))


class Processes:
    """The processes that train together, as the team that reads the frames folder.

    Args:
        fabric: From :func:`make_fabric`, in a process that was launched.

    Attributes:
        rank: Number of this process.
        size: Number of processes.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.rank, self.size, self._device = fabric.global_rank, fabric.world_size, fabric.device

    def agree(self, error: Exception | None) -> None:
        """Raise in all processes the error that one of them met; the others would wait for it for ever."""
        errors: list[Exception | None] = [None] * self.size
        torch.distributed.all_gather_object(errors, error)
        for met in errors:
            if met is not None:
                raise met

    def exchange(self, rows: shuffle.Rows, sent: shuffle.Indices, received: shuffle.Indices) -> shuffle.Rows:
        """Give each process some of the rows; see :class:`latent_obs.data.shuffle.Team`."""
        given = torch.from_numpy(rows).to(self._device)
        got = given.new_empty((int(received.sum()), rows.shape[1]))
        torch.distributed.all_to_all_single(got, given, received.tolist(), sent.tolist())
        back: shuffle.Rows = got.cpu().numpy()
        return back


def keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees, so that the next step can use it.

    By default glibc returns it to the system, and getting it back costs thousands of page faults, 4 to 5% of
    a step's time on one core. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    trim_threshold, mmap_threshold = -1, -3  # the constants' values in malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    if not mallopt(mmap_threshold, 2**30):
        mallopt(mmap_threshold, 2**25)  # the most that older versions take


def choose_precision(wanted: Literal["auto", "float32", "bfloat16"]) -> tuple[Computed, str]:
    """Choose what to compute in, and say why.

    Many CPUs list bfloat16 and are slower in it than in float32: without AMX, 18.7 s against 15.2 s for the
    same steps. So ``"auto"`` takes bfloat16 on a CPU only with AMX's matrix unit.

    Args:
        wanted: Value of ``--precision``.

    Returns:
        The precision, and the reason in words that follow "because".

    Example:
        >>> choose_precision("float32")
        ('float32', '--precision asks for it')
    """
    if wanted != "auto":
        return wanted, "--precision asks for it"
    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "the GPU computes in it"
        return "float32", "the GPU only emulates bfloat16"
    if _has_amx():
        return "bfloat16", "the CPU has AMX, which is faster in it"
    return "float32", "the CPU has no AMX, and without it bfloat16 is slower"


def _has_amx() -> bool:
    """Say whether the CPU multiplies matrices of bfloat16 in a unit of its own."""
    check = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if check is not None:
        return bool(check())
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
