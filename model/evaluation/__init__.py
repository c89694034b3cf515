"""What a package is worth on labelled images: figures with intervals, and a report to read.

Owns scikit-learn's metrics and matplotlib. Imported by the commands that measure, never by the
daemon's processes; the network runs behind the same port as in the worker.
"""
