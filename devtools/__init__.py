"""What dev.py, the tests, the benchmarks and the training of the demo model share. Plain Python: no package needed."""
