"""Processes that share each step of a training."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def default_processes(device: str) -> int:
    return 1 if device == "cuda" else os.cpu_count() or 1


def spread(processes: int) -> int:
    """Run this very command once per process, each told its rank; returns the worst exit status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    ranks = ({"RANK": str(rank), "WORLD_SIZE": str(processes)} for rank in range(processes))
    running = [subprocess.Popen(sys.orig_argv, env=os.environ | meeting | rank) for rank in ranks]
    return max(abs(process.wait()) for process in running)
