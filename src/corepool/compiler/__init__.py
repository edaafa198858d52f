"""Compilation of a network, split into a slow static and a fast dynamic stage.

It must not know who asks for a compilation, nor how a device is reached.
"""
