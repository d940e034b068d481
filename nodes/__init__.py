"""The faces: node schemas whose execute() calls down into hooks and engine."""
