"""The paper's experiments on this machine: one file each, results as data, plots and one report.

It must not know terminals or processes; the command line calls it and shows its progress.
"""
