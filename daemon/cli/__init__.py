"""The command line: every command is a function of one module here."""

from __future__ import annotations


def main() -> None:
    """Run the ``medimgd`` console script."""
    from daemon.cli.application import app

    app()
