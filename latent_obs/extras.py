"""Packages that only some jobs need: which extra brings each, and the line that installs it.

Whatever meets a missing package says so through this module.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

# Each package, as it is imported, and the extra of pyproject.toml that brings it.
EXTRAS = {
    "torch": "make",
    "lightning_fabric": "make",
    "matplotlib": "make",
    "pyarrow": "make",
    "sklearn": "make",
    "Box2D": "box2d",
    "huggingface_hub": "hub",
    "minari": "minari",
    "h5py": "minari",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pettingzoo": "pettingzoo",
    "ray": "ray",
    "stable_baselines3": "sb3",
    "tensorboard": "tensorboard",
    "tensordict": "torchrl",
    "torchrl": "torchrl",
}


@contextlib.contextmanager
def needs(job: str, extra: str | None = None) -> Iterator[None]:
    """Turn a failed import inside the block into an error that names the line to type.

    Args:
        job: What needs the packages; the error's subject.
        extra: The extra that brings them, or several joined by commas. ``None`` (default): the extra in
            :data:`EXTRAS` for the missing package; Python's own error passes where it has none.

    Raises:
        ImportError: If a package is missing.

    Example:
        >>> with needs("Training"):
        ...     import torch
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if extra is None and package not in EXTRAS:
            raise
        raise missing(job, package, extra) from error


def missing(job: str, package: str, extra: str | None = None) -> ImportError:
    """Return the error that says that a package is missing and which line installs it.

    Args:
        job: What needs the package; the error's subject.
        package: The package, as it is imported.
        extra: The extra that brings it, or several joined by commas. ``None`` (default): the one in
            :data:`EXTRAS`.
    """
    line = install_line(extra or EXTRAS[package])
    return ImportError(f"{job} needs {package}, which is not installed. Install it with: {line}")


def install_line(extra: str) -> str:
    """Return the line that adds an extra to this installation.

    pip records where it installed a package from (PEP 610). A package that came from a clone is installed
    again from that clone, since latent_obs is on no index yet. A package that came from an index has no
    such record and is installed by its name, so nothing here changes on release.

    Args:
        extra: The extra, or several joined by commas.

    Returns:
        A shell command, for the environment of the running interpreter.
    """
    pip = shutil.which("pip")
    beside = pip is not None and Path(pip).parent == Path(sys.executable).parent
    command = "pip install" if beside else f"{sys.executable} -m pip install"
    try:
        record = json.loads(metadata.distribution("latent_obs").read_text("direct_url.json") or "null")
    except metadata.PackageNotFoundError:  # it runs from a clone that was not installed
        return f"{command} '{Path(__file__).parent.parent}[{extra}]'"
    if record is None:
        return f"{command} 'latent_obs[{extra}]'"
    if "dir_info" not in record:  # a repository or a wheel, by its URL
        scheme = f"{record['vcs_info']['vcs']}+" if "vcs_info" in record else ""
        return f"{command} 'latent_obs[{extra}] @ {scheme}{record['url']}'"
    editable = "--editable " if record["dir_info"].get("editable") else ""
    return f"{command} {editable}'{url2pathname(urlparse(record['url']).path)}[{extra}]'"
