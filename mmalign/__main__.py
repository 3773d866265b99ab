"""`python -m mmalign` is the command line."""

import sys

from mmalign.cli import main

sys.exit(main())
