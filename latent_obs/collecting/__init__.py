"""Filling folders: frames from environments, latents from frames."""
