"""Print a language model's perplexities: see README.md beside this file, or --help."""

import sys

if __name__ == "__main__":
    try:
        from samba_asr.training.language_model.cli import main_evaluate
    except ModuleNotFoundError as error:
        sys.exit(f"evaluate.py: evaluation needs more packages ({error}); install them with: pip install -e '.[train]'")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main_evaluate())
