"""What all transformers have in common: attention is met in ComfyUI's `optimized_attention_override`.

The override receives q, k and v after norm and rotation, but not whose they are. Hooks on the modules that call
attention tell: which layer runs next, where the picture's tokens stand, how they were rotated. Both live for one model
call (or for one recording) and are removed in any case.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import nn
from torch.nn import functional

from ...engine.joint_style import Cure
from ...engine.layers import LayerId, in_forward_order
from ...engine.style import KEEP, SHIFT
from .attention import OVERRIDE, chosen_attention
from .attention_call import AttentionCall
from .base import Architecture, Operator, Projected, Receive, keep, parameters_under, removed_afterwards, uncompiled
from .rotation import Rotation, untwisting

TEXT_PADS = "conditional_balance_text_pads"
"""In transformer_options: for every row, how many tokens at the end of its text are padding that must not be seen."""

UNTWISTING = 1.05, 3.0, 50.0
"""Scale of high and of low frequencies, and the steepness between: what ports of Untwisting RoPE use on Z-Image."""


@dataclass(frozen=True)
class Blocks:
    """One kind of layers in a network: blocks `path`.0, `path`.1, ...

    `projection` is the Linear inside a block that makes q, k and v of the picture (`{feature}` where each has its own);
    a block without it has no such layer. `owner` is the module inside a block whose forward calls attention, `out` the
    Linear that takes what it attends to in text; a single-stream block's takes more behind it. No `out`: no text there.
    """

    kind: str
    path: str
    projection: str
    owner: str = ""
    out: str = ""


@dataclass(frozen=True)
class Place:
    """Where the tokens of one attention call stand: the picture's begin at `start`; how they are rotated, if at all.

    An owner that calls attention for one stretch of tokens after the other, each with the keys up to its end, says by
    how many `keys` the picture's call is known.
    """

    start: int
    text: slice = field(default_factory=lambda: slice(0, 0))
    matrices: torch.Tensor | None = None
    keys: int | None = None


@dataclass
class Seen:
    """What a call of the network has shown so far: the picture's `grid` (frames, rows, columns), lengths of text.

    `prompt` is how many tokens of text the network was `given`, `text` how many its blocks see, `before` how many of
    those stand before the prompt's.
    """

    grid: tuple[int, int, int] = (1, 0, 0)
    prompt: int | None = None
    text: int | None = None
    before: int = 0
    image: int | None = None
    given: Given = field(default_factory=lambda: Given((), {}))

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)


class Given:
    """The arguments of a module's forward, by name wherever they stand."""

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs

    def __call__(self, name: str, place: int) -> Any:
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[place] if place < len(self.args) else None


class Transformer(Architecture):
    """A family of diffusion transformers. A family says where its blocks are and where their tokens stand."""

    classes: ClassVar[tuple[str, ...]]
    """Module and name of the network's classes; a subclass of them is another family until it is listed."""
    blocks: ClassVar[tuple[Blocks, ...]]
    position = SHIFT
    text_joined = True
    control: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Lists of residuals that a ControlNet brings, each with the blocks that take one apiece; empty: takes none."""
    cross: ClassVar[str] = ""
    """The module inside a block that attends to text, where text does not stand beside the picture."""
    padded_before: ClassVar[bool] = False
    """Whether the model lengthens a short prompt at its beginning, so that its tokens are the last of the text."""
    halves: ClassVar[bool] = False
    """Whether a rotation turns channels of both halves instead of neighbours."""
    _told_compiled = False

    def __init__(self, network: nn.Module) -> None:
        """The blocks are found now: during a call WaveSpeed has put one module in the place of all."""
        super().__init__(network)
        self.owners = self._owners()
        self.text_owners = self._text_owners()

    @classmethod
    def matches(cls, network: nn.Module) -> bool:
        return f"{type(network).__module__}.{type(network).__qualname__}" in cls.classes

    @abstractmethod
    def place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        """Where tokens stand in the attention call of a layer whose owner was called with `given`.

        None when that cannot be told, because a block before this one was skipped by another pack.
        """

    @property
    def axes(self) -> list[int]:
        """Channels of each axis of a rotary family's positions; the last is the picture's columns."""
        return list(self._embedder.axes_dim)

    def turned_by(self, columns: int, device: torch.device) -> torch.Tensor:
        """The rotation [1, 1, 1, channels / 2, 2, 2] that moves a token by so many columns."""
        ids = torch.zeros(1, 1, len(self.axes), device=device)
        ids[..., self.columns_axis] = columns
        return self._embedder(ids)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - an architecture lives as long as the nodes that hold it
    def _moved_by(self, columns: int, device: torch.device) -> torch.Tensor:
        return self.turned_by(columns, device)

    @functools.lru_cache(maxsize=8)  # noqa: B019 - as above; what is kept need not be brought to the GPU at every layer
    def _untwisted(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """The scale of each channel of a key [channels]."""
        scales = untwisting(self.axes, *UNTWISTING).to(device, dtype)
        return torch.cat((scales, scales)) if self.halves else scales.repeat_interleave(2)

    @property
    def columns_axis(self) -> int:
        """Which axis counts columns."""
        return min(2, len(self.axes) - 1)

    @property
    def _embedder(self) -> Any:
        return getattr(self.network, "pe_embedder", None) or self.network.rope_embedder

    def cure(self, position: str, projected: Projected) -> Cure:
        if position == KEEP or projected.rotation is None:
            return keep
        if position == SHIFT:
            return Rotation(self._moved_by(projected.plane[1], projected.k.device), self.halves).redo
        each = self._untwisted(projected.k.device, projected.k.dtype)
        return lambda keys: keys * each

    @property
    def patch(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns in one token."""
        size = self.network.patch_size
        frames, rows, columns = (1, size, size) if isinstance(size, int) else (1, *size)[-3:]
        return frames, rows, columns

    def grid(self, latent: torch.Size) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens that a latent [B, C, (T,) H, W] becomes; odd sizes are padded."""
        sizes = zip((1, *latent[2:])[-3:], self.patch, strict=True)
        frames, rows, columns = (-(-size // patch) for size, patch in sizes)
        return frames, rows, columns

    @functools.cached_property
    def layers(self) -> tuple[LayerId, ...]:
        found = (LayerId(blocks.kind, number) for blocks in self.blocks for number in self._numbers(blocks))
        return in_forward_order(layer for layer in found if self._there(self.projection(layer, "q")))

    def projection(self, layer: LayerId, feature: str) -> str:
        blocks = self._blocks_of(layer)
        return f"{blocks.path}.{layer.number}.{blocks.projection.format(feature=feature)}.weight"

    def parameters(self, layer: LayerId) -> tuple[str, ...]:
        return parameters_under(self.network, f"{self._blocks_of(layer).path}.{layer.number}.")

    def width(self, layer: LayerId) -> int:
        return self.network.get_submodule(self.projection(layer, "q").removesuffix(".weight")).in_features

    def _owners(self) -> dict[nn.Module, list[LayerId]]:
        """The modules that call attention, each with the layers of its calls in their order."""
        found: dict[nn.Module, list[LayerId]] = {}
        for layer in self.layers:
            blocks = self._blocks_of(layer)
            path = ".".join(filter(None, (blocks.path, str(layer.number), blocks.owner)))
            found.setdefault(uncompiled(self.network.get_submodule(path)), []).append(layer)
        return found

    @functools.cached_property
    def text_layers(self) -> tuple[LayerId, ...]:
        return tuple(layer for layer in self.layers if self._blocks_of(layer).out)

    def subject_layers(self, levels: int) -> tuple[LayerId, ...]:
        """Those from a fifth to three fifths of the depth, which find subjects best on the demo transformer.

        The blocks before them find hardly any there, and those behind fewer. No other transformer was measured yet.
        """
        depth = len(self.text_layers)
        return self.text_layers[depth // 5 : max(depth // 5 + 1, 3 * depth // 5)]

    def writing(self, layer: LayerId) -> Callable[[torch.Tensor], torch.Tensor]:
        blocks = self._blocks_of(layer)
        module = self.network.get_submodule(f"{blocks.path}.{layer.number}.{blocks.out}")
        return lambda x: module(functional.pad(x, (0, module.in_features - x.shape[-1])))

    def _text_owners(self) -> dict[nn.Module, list[LayerId]]:
        """The modules that call attention to text, each with the layers of its calls in their order."""
        if not self.cross:
            return self.owners
        paths = {layer: f"{self._blocks_of(layer).path}.{layer.number}.{self.cross}" for layer in self.text_layers}
        return {uncompiled(self.network.get_submodule(path)): [layer] for layer, path in paths.items()}

    def text_place(self, layer: LayerId, given: Given, seen: Seen) -> Place | None:
        """Where tokens stand in the attention to text of a layer's block: queries the picture's, keys the text's."""
        if not self.cross:
            return self.place(layer, given, seen)
        if given("context_img_len", 2):
            return None  # a picture's own tokens have a call before the text's
        return Place(given("x", 0).shape[1] - seen.tokens, slice(0, given("context", 1).shape[1]))

    @functools.cached_property
    def choosing(self) -> list[nn.Module]:
        """The modules whose weights bring the attention to call. Newer ComfyUI forgets it where an override stands."""
        return [module for module in self.network.modules() if chosen_attention(module) is not None]

    @functools.cached_property
    def _compiled_inside(self) -> bool:
        return any(module is not uncompiled(module) for module in self.network.modules())

    def tell_if_compiled(self, options: Mapping[str, Any]) -> None:
        """Say in the log, once, that calls with these options are slower than a compiled model's others."""
        wrapped = COMPILE_KEY in (options.get("wrappers") or {}).get(WrappersMP.APPLY_MODEL, {})
        if not self._told_compiled and (wrapped or self._compiled_inside):
            self._told_compiled = True
            logging.warning(
                "Conditional Balance: this model is compiled, but steps in which a node of this pack acts run "
                "uncompiled and are no faster. Narrow the node's window to keep the other steps fast."
            )

    @contextmanager
    def seen(self, operators: Mapping[LayerId, Operator], of_text: bool) -> Iterator[None]:
        """Inside the block every call of the network lets `operators` read and answer for layers' attention.

        `of_text` takes attention to text. Operators go round those of `intercepted`, whichever came first.
        """
        owners, place = (self.text_owners, self.text_place) if of_text else (self.owners, self.place)
        with _Watch(self, operators, owners, place, outside=True).hooked(), uncompiled_calls():
            yield

    @contextmanager
    def recording(self, features: Sequence[str], receive: Receive) -> Iterator[None]:
        operators = {layer: functools.partial(_record, features, receive, layer) for layer in self.layers}
        with _Watch(self, operators, self.owners, self.place, outside=True).hooked(), uncompiled_calls():
            yield

    @contextmanager
    def intercepted(self, options: dict[str, Any], operators: Mapping[LayerId, Operator]) -> Iterator[dict[str, Any]]:
        if any(options.get(TEXT_PADS, ())):
            operators = dict.fromkeys(self.layers, Projected.plain) | dict(operators)
        if not operators:
            yield options
            return
        with _Watch(self, operators, self.owners, self.place).hooked(), uncompiled_calls():
            yield options

    def _blocks_of(self, layer: LayerId) -> Blocks:
        return next(blocks for blocks in self.blocks if blocks.kind == layer.block)

    def _numbers(self, blocks: Blocks) -> range:
        return range(len(getattr(self.network, blocks.path, ())))

    def _there(self, weight: str) -> bool:
        try:
            self.network.get_submodule(weight.removesuffix(".weight"))
        except AttributeError:
            return False
        return True


class _Watch:
    """The hooks of one or more calls of a network, and what they have seen. `outside` goes round all that are not."""

    def __init__(
        self,
        family: Transformer,
        operators: Mapping[LayerId, Operator],
        owners: Mapping[nn.Module, list[LayerId]],
        place: Callable[[LayerId, Given, Seen], Place | None],
        outside: bool = False,
    ) -> None:
        self.family, self.operators, self.owners, self.place, self.outside = family, operators, owners, place, outside
        self.seen, self.override = Seen(), _Override((self,), None, None)
        self.next: list[tuple[LayerId, Place | None]] = []
        self.chosen: Callable[..., torch.Tensor] | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        network = self.family.network
        with removed_afterwards([network.register_forward_pre_hook(self._before_network, with_kwargs=True)]) as handles:
            for module in self.family.choosing:
                handles.append(module.register_forward_pre_hook(self._before_choosing))
                handles.append(module.register_forward_hook(self._after_choosing, always_call=True))
            for owner, layers in self.owners.items():
                before = functools.partial(self._before_owner, layers)
                handles.append(owner.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(owner.register_forward_hook(self._after_owner, always_call=True))
            yield

    def _before_network(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = Given(args, kwargs)
        prompt = given("context", 2)
        grid = self.family.grid(given("x", 0).shape)
        self.seen = Seen(grid, None if prompt is None else prompt.shape[1], given=given)
        options = kwargs.get("transformer_options") or {}
        self.family.tell_if_compiled(options)
        self.override = _Override.on(options.get(OVERRIDE), self, options.get(TEXT_PADS))
        return args, {**kwargs, "transformer_options": {**options, OVERRIDE: self.override}}

    def _before_owner(
        self, layers: list[LayerId], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        given = Given(args, kwargs)
        self.next = [(layer, self.place(layer, given, self.seen)) for layer in layers]
        return args, self._handed_on(module, args, kwargs)

    def _handed_on(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """What an owner is called with; the override too where a forward of another pack's did not hand it on.

        Those of TeaCache, MagCache and WaveSpeed call Flux's blocks without any options.
        """
        options = kwargs.get("transformer_options") or {}
        found = options.get(OVERRIDE)
        fewer = isinstance(found, _Override) and len(found.watches) < len(self.override.watches)
        if not (found is None or fewer) or not _takes_options(module, args):
            return kwargs
        return {**kwargs, "transformer_options": {**options, OVERRIDE: self.override}}

    def _before_choosing(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.chosen = chosen_attention(module)

    def _after_choosing(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.chosen = None

    def _after_owner(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.next = []

    def answer(self, keys: int) -> Callable[[AttentionCall], torch.Tensor] | None:
        """What is done to the attention call that has begun, of so many keys; to be asked for once a call."""
        layer, place = self.next[0] if self.next else (None, None)
        if place is not None and place.keys not in (None, keys):
            return None  # of a stretch before the picture
        self.next = self.next[1:]
        operator = None if layer is None else self.operators.get(layer)
        if operator is None or place is None:
            return None
        return functools.partial(self._answered, operator, place)

    def _answered(self, operator: Operator, place: Place, call: AttentionCall) -> torch.Tensor:
        call = call.ending_at(place.text.stop)
        if place.keys is not None:
            call = call.led_by(place.keys - call.q.shape[-2])
        return call.own(operator(self._projected(call, place)))

    def _projected(self, call: AttentionCall, place: Place) -> Projected:
        rotation = None if place.matrices is None else Rotation(place.matrices, self.family.halves)
        image = slice(place.start, place.start + self.seen.tokens)
        where = {"text": place.text, "grid": self.seen.grid, "rotation": rotation}
        return Projected(call.q, call.k, call.v, call.attend, image, **where, bias=call.bias)


@dataclass(frozen=True)
class _Override:
    """Stands as `optimized_attention_override` in a call of the network: `earlier` of another pack, `watches` round it.

    A later watch stands round an earlier one. The innermost leaves the padding out of every row's text.
    """

    watches: tuple[_Watch, ...]
    earlier: Callable[..., torch.Tensor] | None
    pads: Sequence[int] | None

    @classmethod
    def on(cls, found: Any, watch: _Watch, pads: Sequence[int] | None) -> _Override:
        """One watch more, on what stands there already."""
        if not isinstance(found, cls):
            return cls((watch,), found, pads)
        return replace(found, watches=tuple(sorted((*found.watches, watch), key=lambda each: each.outside)))

    def __call__(self, func: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.earlier is None:
            func = self.watches[0].chosen or func
        keys = (args[1] if len(args) > 1 else kwargs["k"]).shape[-2]
        answers = [answer for watch in self.watches if (answer := watch.answer(keys)) is not None]
        attention = self.earlier
        for number, answer in enumerate(answers):
            layered = functools.partial(self._layered, innermost=number == 0, outermost=number == len(answers) - 1)
            attention = functools.partial(_answered, answer, attention, layered)
        return func(*args, **kwargs) if attention is None else attention(func, *args, **kwargs)

    def _layered(self, call: AttentionCall, innermost: bool, outermost: bool) -> AttentionCall:
        """The call for one of several watches' answers: around others, within others."""
        unseen = tuple(self.pads or ())
        masked = not outermost and call.mask is not None
        return replace(call, pads=unseen if innermost else (), unseen=unseen, together=not innermost, masked=masked)


def _answered(
    answer: Callable[[AttentionCall], torch.Tensor],
    earlier: Callable[..., torch.Tensor] | None,
    layered: Callable[[AttentionCall], AttentionCall],
    func: Callable[..., torch.Tensor],
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    return answer(layered(AttentionCall.of(func, earlier, args, kwargs)))


def _takes_options(module: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether a module's forward takes options by name beside these arguments."""
    signature = inspect.signature(module.forward)
    try:
        signature.bind_partial(*args, transformer_options={})
    except TypeError:
        return False
    return True


def _record(features: Sequence[str], receive: Receive, layer: LayerId, projected: Projected) -> torch.Tensor:
    for feature in features:
        receive(layer, feature, projected.of_picture(feature).transpose(1, 2).flatten(2))
    return projected.plain()


_stance = ExitStack()
_uncompiled = 0
_lock = threading.Lock()


@contextmanager
def uncompiled_calls() -> Iterator[None]:
    """No `torch.compile` inside: hooks set after it do not fire in compiled code, and a new override recompiles it.

    Torch knows one stance for all threads. Where several cards share a run, calls overlap: the last one to end, and not
    the first one to begin, puts back what was.
    """
    global _uncompiled
    with _lock:
        if not _uncompiled and hasattr(torch.compiler, "set_stance"):
            _stance.enter_context(torch.compiler.set_stance("force_eager"))
        _uncompiled += 1
    try:
        yield
    finally:
        with _lock:
            _uncompiled -= 1
            if not _uncompiled:
                _stance.close()
