#!/bin/bash
# Trains all parts on one GPU in nine minutes: bash demo/gpu.sh PREPARED RESULTS [OPTION OF THE FIRST TWO ...]
# ControlNet and transformer need the UNet and its text encoder, not each other: they share the card and fill each
# other's gaps. What each printed stands in RESULTS.
set -e -o pipefail
export PYTHONUNBUFFERED=1
train() { python3 demo/gpu.py "$prepared" "$@"; }
prepared=$1 results=$2 work=$(mktemp -d)
mkdir -p "$results"
train "$work" autoencoder unet --minutes 5.4 --stop 5.8 "${@:3}" 2>&1 | tee "$results/painters.log"
train "$work" controlnet --minutes 2.75 --stop 3 > "$results/controlnet.log" 2>&1 &
train "$work" transformer --minutes 2.75 --stop 3 > "$results/transformer.log" 2>&1 || true
wait
tail -n 4 "$results/controlnet.log" "$results/transformer.log"
train "$results" --stop 0
