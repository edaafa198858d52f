"""The static compiler's only way to onnxruntime: without usage reports and without its log.

It must not know models. Import it where onnxruntime is needed, not at the top of modules: it is slow to load.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is loaded

import onnxruntime

onnxruntime.set_default_logger_severity(4)  # what fails is raised as well; nothing belongs on stderr

__all__ = ["onnxruntime"]
