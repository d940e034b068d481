"""What dev.py, the tests and the benchmarks share. What dev.py itself imports is plain Python: no package needed."""
