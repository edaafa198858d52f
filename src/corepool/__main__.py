"""Lets `python -m corepool` start the command line.

It must not know any command; it only hands over.
"""

from corepool.cli.main import main

if __name__ == "__main__":
    main()
