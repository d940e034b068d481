"""The life of a sampler run and of one model call."""
