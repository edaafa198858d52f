"""The pool in hardware: cores, dispatch, memory access and host interface, written in Amaranth.

It must not know the simulator, the compiler or numerics: they are independent witnesses that meet it in tests.
"""
