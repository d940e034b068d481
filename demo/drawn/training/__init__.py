"""How the drawn world's models are trained; `demo/drawn/train.py` is the command."""
