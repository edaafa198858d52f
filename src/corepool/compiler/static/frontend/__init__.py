"""Brings ONNX files in: reads and checks them, quantises float ones, and builds the layer graph.

It must not know tilings, instructions or devices.
"""

from corepool.compiler.static.frontend.entry import Imported, import_model

__all__ = ["Imported", "import_model"]
