#!/bin/bash
# Trains all parts on one GPU in nine minutes: bash demo/gpu.sh PREPARED RESULTS [OPTION OF THE FIRST TWO ...]
# What each printed stands in RESULTS.
set -e -o pipefail
export PYTHONUNBUFFERED=1
train() { python3 demo/gpu.py "$prepared" "$@"; }
prepared=$1 results=$2 work=$(mktemp -d)
mkdir -p "$results"
train "$work" autoencoder unet --minutes 5.4 --stop 5.8 "${@:3}" 2>&1 | tee "$results/painters.log"
train "$work" controlnet --minutes 1 --stop 1.2 > "$results/controlnet.log" 2>&1
train "$work" transformer --minutes 1.75 --stop 2 > "$results/transformer.log" 2>&1 || true
tail -n 4 "$results/controlnet.log" "$results/transformer.log"
train "$results" --stop 0
