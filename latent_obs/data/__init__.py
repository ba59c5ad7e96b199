"""Frames folders and latents folders: writing, reading, checking and rearranging them."""
