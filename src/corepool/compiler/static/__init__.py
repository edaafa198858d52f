"""Static stage: reads an ONNX model once and writes a package of tiled code.

It must not know how many cores a tenant will later be given.
"""
