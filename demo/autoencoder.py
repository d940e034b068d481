"""A small autoencoder: 192 x 192 pictures to 8 x 24 x 24 latents, cheap enough to train and run on a laptop's CPU.

TAESD's layout works at full resolution and costs thirty times as much; this one folds 4 x 4 pixels into channels first.
"""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = 8


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, width, 3, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Autoencoder(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] to latents [B, 8, H/8, W/8] of about unit spread, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, 64, 3, 1, 1), Residual(64), Residual(64),
            nn.Conv2d(64, 128, 3, 2, 1), Residual(128), Residual(128), nn.Conv2d(128, CHANNELS, 3, 1, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, 128, 3, 1, 1), Residual(128), Residual(128), Residual(128),
            nn.Conv2d(128, 256, 3, 1, 1), nn.PixelShuffle(2), Residual(64), Residual(64), Residual(64),
            nn.Conv2d(64, 48, 3, 1, 1), nn.PixelShuffle(4),
        )  # fmt: skip

    def encode(self, pictures: Tensor, **_: object) -> Tensor:
        return self.encoder(pictures)

    def decode(self, latents: Tensor, **_: object) -> Tensor:
        return self.decoder(latents)
