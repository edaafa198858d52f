"""The dynamic compiler: packages and a number of cores to instruction streams.

It must not import the static compiler or onnx.
"""

from corepool.compiler.dynamic.linker import Linked, link

__all__ = ["Linked", "link"]
