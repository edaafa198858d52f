"""Root of the package: holds the version and nothing else.

It imports no other module, so that importing one part never loads the rest.
"""

__version__ = "0.1.0"
