"""Train a recogniser: see README.md beside this file, or --help."""

import sys

if __name__ == "__main__":
    try:
        from samba_asr.training.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
