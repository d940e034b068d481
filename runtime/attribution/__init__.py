"""Where a model draws a subject."""
