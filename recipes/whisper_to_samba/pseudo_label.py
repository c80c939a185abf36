"""Give transcripts a Whisper teacher's case and punctuation: see README.md beside this file, or --help."""

import sys

if __name__ == "__main__":
    try:
        from samba_asr.training.whisper.cli import main_label

        sys.exit(main_label())
    except ModuleNotFoundError as error:
        sys.exit(f"pseudo_label.py: more packages are needed ({error}): pip install -e '.[train,distil]'")
