"""Train a recogniser: see README.md beside this file, or --help."""

import sys

from samba_asr.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
