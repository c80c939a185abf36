"""Train a language model: see README.md beside this file, or --help."""

import sys

if __name__ == "__main__":
    try:
        from samba_asr.training.language_model.cli import main
    except ModuleNotFoundError as error:
        sys.exit(f"train.py: training needs more packages ({error}); install them with: pip install -e '.[train]'")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(main())
