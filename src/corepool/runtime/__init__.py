"""What the host does around a device: lay out inputs and outputs, upload a model, start it, move it to other cores.

It must not know ONNX files, the static compiler or who wants the answers.
"""
