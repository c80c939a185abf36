"""Give a trained encoder and CTC head a decoder that learns from Whisper's: see README.md beside this, or --help."""

import sys

if __name__ == "__main__":
    try:
        from samba_asr.training.whisper.cli import main_decoder

        sys.exit(main_decoder())
    except ModuleNotFoundError as error:
        sys.exit(f"distil_decoder.py: more packages are needed ({error}): pip install -e '.[train,distil]'")
