"""What every program is told."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Options:
    """``quick`` is for tests: tiny sizes, whose figures mean nothing.

    ``rounds`` of 0 means as many as the program thinks right. ``peers``: beside other people's
    queues, on servers, too.
    """

    quick: bool = False
    rounds: int = 0
    peers: bool = False

    def say(self, text: str) -> None:
        """A line about what is being done, to stderr."""
        print(text, file=sys.stderr, flush=True)
