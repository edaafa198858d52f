"""Example networks and inputs for demonstrations, tests and measurements.

It must not know how a network is compiled or run.
"""
