"""Logical shapes: how an ONNX tensor of any rank is a view of a feature map of channels, height and width.

It must not know ONNX files or layers; it decides only which reshapes and transposes cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Axes = tuple[tuple[str, ...], ...]
Dims = tuple[int, int, int]  # channels, height, width
MAP_AXES = ("c", "h", "w")


class ViewError(ValueError):
    """A reshape or transpose that would have to move data."""


@dataclass(frozen=True)
class Form:
    """An ONNX ``shape`` over a map of ``dims``: for each ONNX dimension the map axes (of size > 1) that it joins."""

    shape: tuple[int, ...]
    axes: Axes
    dims: Dims

    def size(self, axis: str) -> int:
        return self.dims[MAP_AXES.index(axis)]

    @property
    def order(self) -> tuple[str, ...]:
        return tuple(axis for group in self.axes for axis in group)

    def spatial_rank(self) -> int | None:
        """2 for [1, C, H, W], 1 for [1, C, W] with height 1, None for any other view."""
        rank = len(self.shape)
        if rank not in (3, 4) or self.shape[0] != 1:
            return None
        expected = ((), ("c",), ("h",), ("w",)) if rank == 4 else ((), ("c",), ("w",))
        plain = tuple(tuple(a for a in group if self.size(a) > 1) for group in expected)
        if plain != self.axes or (rank == 3 and self.dims[1] != 1):
            return None
        return rank - 2

    def channel_dimension(self) -> int | None:
        """The ONNX dimension that is exactly the channel axis, if there is one."""
        for index, group in enumerate(self.axes):
            if group == ("c",):
                return index
        if self.dims[0] == 1 and len(self.shape) > 1 and self.shape[1] == 1:
            return 1
        return None

    def with_dims(self, dims: Dims) -> Form:
        """The same arrangement [1, C, H, W] or [1, C, W] over a map of other sizes."""
        return plain_form(dims, len(self.shape))


def plain_form(dims: Dims, rank: int = 4) -> Form:
    """[1, C, H, W], [1, C, W] or [1, C] over a map; raises ViewError if an axis without a place is larger than 1."""
    places: dict[int, Axes] = {4: ((), ("c",), ("h",), ("w",)), 3: ((), ("c",), ("w",)), 2: ((), ("c",))}
    return make_form(places[rank], dims)


def make_form(axes: Axes, dims: Dims) -> Form:
    """A form from its axes; drops axes of size 1 and checks that each larger one stands exactly once."""
    sizes = dict(zip(MAP_AXES, dims, strict=True))
    shape = tuple(math.prod(sizes[a] for a in group) for group in axes)
    kept = tuple(tuple(a for a in group if sizes[a] > 1) for group in axes)
    named = [a for group in kept for a in group]
    if sorted(named) != [a for a in MAP_AXES if sizes[a] > 1]:
        raise ViewError(f"axes {axes} do not cover a map of {dims}")
    return Form(shape, kept, dims)


def input_form(shape: tuple[int, ...], channels_last: bool) -> Form:
    """How a graph input lies on a map: [1, C, H, W] (or [1, H, W, C]), [1, C, W], [1, C] or [C]."""
    if len(shape) > 1 and shape[0] != 1:
        raise ViewError(f"its batch size is {shape[0]}; supported is 1")
    rank = len(shape)
    if rank == 4:
        axes: Axes = ((), ("h",), ("w",), ("c",)) if channels_last else ((), ("c",), ("h",), ("w",))
    elif rank == 3:
        axes = ((), ("w",), ("c",)) if channels_last else ((), ("c",), ("w",))
    elif rank in (1, 2):
        axes = ((), ("c",))[2 - rank :]
    else:
        raise ViewError(f"it has {rank} dimensions; 1 to 4 are supported")
    sizes = {group[0]: shape[index] for index, group in enumerate(axes) if group}
    return make_form(axes, (sizes.get("c", 1), sizes.get("h", 1), sizes.get("w", 1)))


def reshape(form: Form, target: Sequence[int], allow_zero: bool = False) -> Form:
    """The view after ONNX Reshape to ``target`` (with 0 and -1); raises ViewError if data would have to move."""
    sizes = [form.shape[i] if size == 0 and not allow_zero else int(size) for i, size in enumerate(target)]
    total = math.prod(form.shape)
    if sizes.count(-1) > 1 or any(size < -1 for size in sizes):
        raise ViewError(f"target shape {list(target)} is not valid")
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        if known == 0 or total % known:
            raise ViewError(f"shape {list(form.shape)} cannot become {list(target)}")
        sizes[sizes.index(-1)] = total // known
    if math.prod(sizes) != total:
        raise ViewError(f"shape {list(form.shape)} cannot become {sizes}")
    pending = list(form.order)
    groups: list[tuple[str, ...]] = []
    for size in sizes:
        group: list[str] = []
        reached = 1
        while reached < size and pending:
            group.append(pending.pop(0))
            reached *= form.size(group[-1])
        if reached != size:
            raise ViewError(
                f"reshaping {list(form.shape)} to {sizes} splits a map axis; only joining whole axes is a view"
            )
        groups.append(tuple(group))
    return Form(tuple(sizes), tuple(groups), form.dims)


def transpose(form: Form, order: Sequence[int]) -> Form:
    """The view after ONNX Transpose."""
    if sorted(order) != list(range(len(form.shape))):
        raise ViewError(f"permutation {list(order)} does not fit {len(form.shape)} dimensions")
    return replace(form, shape=tuple(form.shape[i] for i in order), axes=tuple(form.axes[i] for i in order))


def squeeze(form: Form, dimensions: Sequence[int] | None) -> Form:
    """The view after ONNX Squeeze (None: all dimensions of size 1)."""
    rank = len(form.shape)
    if dimensions is None:
        drop = {i for i, size in enumerate(form.shape) if size == 1}
    else:
        drop = {d % rank for d in dimensions}
    if any(form.shape[i] != 1 for i in drop):
        raise ViewError(f"cannot squeeze dimensions {sorted(drop)} of {list(form.shape)}")
    return reshape(form, [size for i, size in enumerate(form.shape) if i not in drop], allow_zero=True)


def unsqueeze(form: Form, dimensions: Sequence[int]) -> Form:
    """The view after ONNX Unsqueeze."""
    rank = len(form.shape) + len(dimensions)
    places = {d % rank for d in dimensions}
    rest = iter(form.shape)
    return reshape(form, [1 if i in places else next(rest) for i in range(rank)], allow_zero=True)


def flatten(form: Form, axis: int) -> Form:
    """The view after ONNX Flatten."""
    split = axis % len(form.shape) if axis < 0 else axis
    return reshape(form, [math.prod(form.shape[:split]), math.prod(form.shape[split:])], allow_zero=True)
