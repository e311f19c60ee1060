"""``python -m torch_helion.weights``: the command line; see ``cli``."""

from __future__ import annotations

import os
import sys

from torch_helion.weights.cli import main

if __name__ == "__main__":
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)
