"""Print the words of recordings: python transcribe.py audio.wav (--help says more)."""

import sys

from samba_asr.cli import main

if __name__ == "__main__":
    sys.exit(main())
