"""Compile latent_obs/_area.c and _encode.c while the wheel is built; go on without one where that fails."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = ["/O2", "/std:c11"] if sys.platform == "win32" else ["-O3", "-g0", "-ffp-contract=off"]

# What runs in place of each.
MODULES = {"_area": "cv2 will resize frames", "_encode": "OpenVINO will encode frames"}


class CompileHook(BuildHookInterface):
    """Adds the compiled modules to wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile beside the sources, which is where an editable install looks."""
        for name, instead in MODULES.items():
            try:
                module = compile_module(Path(self.root), name)
            except (Exception, SystemExit) as error:
                message = f"latent_obs: {name}.c was not compiled, {instead} instead ({error})"
                print(message.replace("\n", " "), file=sys.stderr)
                continue
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["artifacts"].append(f"/latent_obs/{module}")


def compile_module(root: Path, name: str) -> str:
    """Build ``latent_obs/NAME.c`` in place and return the name of the module's file."""
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    # setuptools wants paths relative to the working directory, which is the project's root in a build.
    source = (root / "latent_obs" / f"{name}.c").relative_to(Path.cwd())
    extension = Extension(f"latent_obs.{name}", [str(source)], extra_compile_args=FLAGS)
    with TemporaryDirectory() as temporary:
        command = build_ext(Distribution({"name": "latent_obs", "ext_modules": [extension]}))
        command.build_lib = str(root)
        command.build_temp = temporary
        command.force = True
        command.ensure_finalized()
        command.run()
    return Path(command.get_ext_filename(name)).name
