"""Dynamic stage: turns a stored package into programs for a given set of cores.

It must not know ONNX nor anything of the static stage but the package it wrote.
"""
