"""The processes of medimgd, their wiring, the command line and the worklist page.

Owns APScheduler, Typer and the web framework. Everything else is called, not known.
"""

__version__ = "0.1.0"
