"""``python -m benchmarks.models``: see ``run.py``."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

from benchmarks.models.run import main

if __name__ == "__main__":
    sys.exit(main())
