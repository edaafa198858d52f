"""Devices that execute core programs, behind one common interface.

It must not know of networks, tenants or how a program was compiled.
"""
