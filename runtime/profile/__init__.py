"""Measuring a model: captured moments, sensitivity profiles, slot ablation."""
