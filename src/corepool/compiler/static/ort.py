"""The static compiler's only way to onnxruntime: without the usage reports that its wheels send.

It must not know models. Import it where onnxruntime is needed, not at the top of modules: it is slow to load.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is loaded

import onnxruntime

__all__ = ["onnxruntime"]
