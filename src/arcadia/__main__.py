"""`python -m arcadia`."""

import sys

from arcadia.cli import main

if __name__ == "__main__":
    sys.exit(main())
