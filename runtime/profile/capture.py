"""Records mean and deviation of what every self-attention layer projects while the model runs over real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from typing import Any, cast

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher

from ...engine.divergence import FeaturesNotFinite, among
from ...engine.layers import LayerId
from ...engine.moments import Moments, join_channels, moments_of
from ...engine.sampling import tiles
from ..arch.base import removed_afterwards
from ..arch.registry import architecture_of
from ..inject.reference import with_frames
from ..runs.keys import prompts_of
from ..runs.model_patches import lengthened
from ..runs.probe import Conditioning, look_at, noise_for

Key = tuple[LayerId, str]
OnImages = Callable[[int], None]
Level = dict[Key, Moments]
OnLevel = Callable[[int, Level], None]
OnTile = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]

COPIES = 3  # of a level's moments at most: by batch, joined, and of one layer all features together
IMAGES_A_PASS = 4  # more fill no accelerator better, and a fixed number gives the same rounding every time


class Recorder:
    """Moments of one batch of images, by layer, feature and conditioning.

    Rows belong to the conditionings that ComfyUI names in `transformer_options["uuids"]`: it puts any number of them
    into one call, in any order, and splits them over several calls when memory is short.
    """

    def __init__(self) -> None:
        self.image_passes = 0
        self.images: int | None = None  # in the next calls, where it is known
        self._rows: list[Any] = []
        self._found: dict[Key, dict[Any, Moments]] = {}

    def take(self, order: Sequence[Any]) -> dict[Key, Moments]:
        """The moments [images, channels] since the last call, conditionings joined in `order`; then forget them."""
        found, self._found = self._found, {}
        return {key: join_channels([parts[one] for one in order if one in parts]) for key, parts in found.items()}

    def forget(self) -> None:
        """Drop the moments since the last call."""
        self._found = {}

    def before_network(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        options = kwargs.get("transformer_options") or {}
        self._rows = list(prompts_of(options))
        x = args[0] if args else kwargs["x"]
        if self.images is not None and len(x) != len(self._rows) * self.images:
            raise ValueError(
                f"Another node calls 'model' with {len(x)} rows for {len(self._rows)} conditionings of {self.images} "
                "images, as tiling and hidden references do, so that nothing can be measured: connect the model "
                "without that node."
            )
        self.image_passes += len(x)

    def after_network(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._rows = []

    def receive(self, layer: LayerId, feature: str, tokens: torch.Tensor) -> None:
        """A layer's projected tokens [rows, tokens, channels]; only their moments are kept."""
        if self._rows:
            mean, std = (part.chunk(len(self._rows)) for part in moments_of(tokens))
            parts = self._found.setdefault((layer, feature), {})
            parts.update((one, Moments(*rows)) for one, *rows in zip(self._rows, mean, std, strict=True))


@contextmanager
def recording(model: ModelPatcher, features: Sequence[str]) -> Iterator[Recorder]:
    """Records every self-attention's `features` (q, k, v) in all calls of the model until the block ends."""
    recorder, architecture = Recorder(), architecture_of(model)
    with removed_afterwards([]) as handles:
        handles.append(architecture.network.register_forward_pre_hook(recorder.before_network, with_kwargs=True))
        handles.append(architecture.network.register_forward_hook(recorder.after_network))
        with architecture.recording(features, recorder.receive):
            yield recorder


def measure(
    model: ModelPatcher,
    latents: torch.Tensor,
    positive: Conditioning,
    negative: Conditioning | None,
    sigmas: torch.Tensor,
    features: Sequence[str],
    distance: str,
    seed: int,
    on_images: OnImages,
    on_tile: OnTile,
) -> int:
    """Distances of all pairs of images at every layer, by noise level; returns how many images passed through.

    As `capture`. `on_tile(level, distances [features, layers, rows, columns], rows, columns)` is called, level after
    level, for tiles that hold every pair of images once (`engine.sampling.tiles`).
    """
    layers = architecture_of(model).layers

    def reduce(level: int, moments: Level) -> None:
        for rows, columns in tiles(len(latents)):
            sides = [_part(moments, where) for where in ((rows,) if rows is columns else (rows, columns))]
            on_tile(level, distances_of(sides, layers, features, distance, float(sigmas[level])), rows, columns)

    return capture(model, latents, positive, negative, sigmas, features, seed, on_images, reduce)


def capture(
    model: ModelPatcher,
    latents: torch.Tensor,
    positive: Conditioning,
    negative: Conditioning | None,
    sigmas: torch.Tensor,
    features: Sequence[str],
    seed: int,
    on_images: OnImages,
    on_level: OnLevel,
) -> int:
    """Moments of images at every layer, by noise level; returns how many images passed through.

    `latents` [images, channels, (1,) h, w] come from the VAE; `sigmas` [levels] fall. All images get the same noise,
    drawn from `seed`. `on_images(count)` is called after every batch, `on_level(level, moments)` after every level.
    LoRA, ControlNet, hooks and areas of the conditioning act as in a sampler.
    """
    latents = with_frames(model, latents)
    conds = {"positive": positive} | ({"negative": negative} if negative is not None else {})
    noise = noise_for(latents[:1], seed).expand(min(IMAGES_A_PASS, len(latents)), *latents.shape[1:])
    with recording(model, features) as recorder:
        look_at(model, conds, noise, sigmas, seed, _Capturing(latents, recorder, on_images, on_level))
        return recorder.image_passes


class _Capturing:
    """What `capture` looks at, one noise level after another."""

    def __init__(self, latents: torch.Tensor, recorder: Recorder, on_images: OnImages, on_level: OnLevel) -> None:
        self.latents, self.recorder, self.on_images, self.on_level = latents, recorder, on_images, on_level

    def __call__(
        self, guider: comfy.samplers.CFGGuider, noise: torch.Tensor, sigmas: torch.Tensor, model_options: dict[str, Any]
    ) -> None:
        for level, sigma in enumerate(sigmas):
            self.on_level(level, _joined(list(self._batches(guider, noise[:1], sigma, model_options))))

    def _batches(
        self, guider: comfy.samplers.CFGGuider, noise: torch.Tensor, sigma: torch.Tensor, model_options: dict[str, Any]
    ) -> Iterator[Level]:
        base, place = guider.inner_model, None
        conds = [guider.conds["positive"], guider.conds.get("negative")]
        order = [cond["uuid"] for side in conds if side is not None for cond in side]
        for latents in self.latents.split(_images_a_pass(guider, noise, len(self.latents))):
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.recorder.images = len(latents)
            images = base.process_latent_in(latents.to(noise))
            noisy = base.model_sampling.noise_scaling(sigma[None], noise.expand_as(images), images)
            comfy.samplers.calc_cond_batch(base, conds, noisy, sigma.expand(len(noisy)), model_options)
            found = self.recorder.take(order)
            place = place or _place_for(found, len(self.latents) / len(latents), noise.device)
            yield {key: Moments(*(part.to(place) for part in moments)) for key, moments in found.items()}
            self.on_images(len(latents))


def distances_of(
    sides: Sequence[Level], layers: Sequence[LayerId], features: Sequence[str], distance: str, sigma: float
) -> torch.Tensor:
    """Distances [features, layers, rows, columns] of one set of images, or between two, on the CPU; for one sigma."""
    owners: list[LayerId] = []
    try:
        found = among(_sets(sides, layers, features, sigma, owners), distance)
    except FeaturesNotFinite as error:
        raise ValueError(
            f"'model' gives no finite numbers in layer {owners[error.place]} at sigma {sigma:.2f}: look for NaN in the "
            "images, the VAE or a LoRA, or start ComfyUI with --force-upcast-attention or in a higher precision."
        ) from error
    parts = zip(owners, found, strict=True)
    return torch.stack([torch.cat([one for _, one in some]) for _, some in groupby(parts, itemgetter(0))], 1).cpu()


def _sets(
    sides: Sequence[Level], layers: Sequence[LayerId], features: Sequence[str], sigma: float, owners: list[LayerId]
) -> Iterator[list[Moments]]:
    """What is measured together, layer after layer; the layer that each is of is added to `owners`."""
    for layer in layers:
        comfy.model_management.throw_exception_if_processing_interrupted()
        keys = [(layer, feature) for feature in features]
        if not all(key in side for side in sides for key in keys):
            raise ValueError(
                f"Layer {layer} of 'model' was not used at sigma {sigma:.2f}: give 'positive' a conditioning that is "
                "active over the whole range, and remove what skips or replaces layers."
            )
        for together in zip(*(_stacked([side[key] for key in keys]) for side in sides), strict=True):
            owners.append(layer)
            yield list(together)


def _joined(batches: Sequence[Level]) -> Level:
    """The images of all batches, where every batch has met the layer."""
    keys = [key for key in batches[0] if all(key in batch for batch in batches)]
    return {key: Moments(*map(torch.cat, zip(*(batch[key] for batch in batches), strict=True))) for key in keys}


def _part(level: Level, images: torch.Tensor) -> Level:
    first, last = int(images[0]), int(images[-1]) + 1
    return {key: Moments(*(part[first:last] for part in moments)) for key, moments in level.items()}


def _stacked(moments: list[Moments]) -> list[Moments]:
    """Features of one width as one [images, features, channels]; one by one where k and v have fewer heads than q."""
    together = len({one.mean.shape for one in moments}) == 1
    groups = [moments] if together else [[one] for one in moments]
    return [Moments(*(torch.stack(parts, 1) for parts in zip(*group, strict=True))) for group in groups]


def _images_a_pass(guider: comfy.samplers.CFGGuider, noise: torch.Tensor, images: int) -> int:
    """As many images as fit beside the model, with both conditionings; ComfyUI itself splits those when it must.

    One, where a patch adds tokens to each row's: USO's style knows one picture at a time.
    """
    if lengthened(guider.model_options.get("transformer_options", {})):
        return 1
    free = comfy.model_management.get_free_memory(noise.device)
    count = min(IMAGES_A_PASS, images)
    while count > 1 and guider.inner_model.memory_required([2 * count, *noise.shape[1:]]) * 1.5 > free:
        count //= 2
    return count


def _place_for(first: Level, times: float, device: torch.device) -> torch.device:
    """Where a level's moments are kept, so many times those of its first batch: on the device where it has room.

    Room for what is made of them too, and for as much again, which ComfyUI has left for the model's calls. SDXL's are 3
    MB an image.
    """
    size = times * sum(part.nbytes for moments in first.values() for part in moments)
    free = cast(float, comfy.model_management.get_free_memory(device))
    return device if 2 * COPIES * size <= free else torch.device("cpu")
