"""Everything that touches ComfyUI's models and samplers, in terms of the engine's words."""
