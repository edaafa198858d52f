"""Integer arithmetic every part agrees on, one definition for all of them.

It must not know of instructions, networks or devices.
"""
