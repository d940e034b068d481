"""The method in plain torch, numpy, scipy and einops. Nothing here imports ComfyUI."""
