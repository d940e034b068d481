"""Conditions applied through a gate while a sampler runs."""
