"""Numbers in sentences for people: with the noun, and where it helps the verb, in its number."""

from __future__ import annotations


def number_of(number: int, one: str, many: str = "") -> str:
    """Return a number with what is counted, for example ``1 study is held``.

    Parameters
    ----------
    number : int
        How many.
    one, many : str
        What follows it when there is one, and otherwise; ``one`` and an s when absent.
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
