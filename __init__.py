"""Conditional Balance: measure where a diffusion model listens, then speak only there."""

from .nodes.extension import comfy_entrypoint

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
