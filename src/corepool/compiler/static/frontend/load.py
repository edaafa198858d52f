"""Reads an ONNX file that nobody vouches for: checks, external data, opset, batch size.

It must not know operators beyond what ONNX itself says about them.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from corepool.errors import ModelError


def load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(path))
    except Exception as error:
        raise ModelError(f"{path}: not an ONNX file ({error})") from None
