"""Turn a Whisper encoder into a Samba encoder: see README.md beside this file, or --help."""

import sys

if __name__ == "__main__":
    try:
        from samba_asr.training.whisper.cli import main

        sys.exit(main())
    except ModuleNotFoundError as error:
        sys.exit(f"distil.py: more packages are needed ({error}): pip install -e '.[train,distil]'")
