"""``python -m daemon``: the same as the ``medimgd`` console script."""

from __future__ import annotations

from daemon.cli import main

if __name__ == "__main__":
    main()
