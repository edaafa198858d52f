"""Instruction set of a core: fields, formats and the words they pack into.

It uses the standard library alone and knows nothing of models, tensors or devices.
"""
