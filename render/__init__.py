"""Drawings and words about results; never imports ComfyUI."""
