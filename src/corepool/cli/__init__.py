"""Command line of the project.

It holds no logic of its own and must not be imported by any other part.
"""
