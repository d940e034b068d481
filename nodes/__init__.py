"""The faces: node schemas whose execute() calls down into runtime, render and engine."""
