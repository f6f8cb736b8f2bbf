"""``python -m torchcc`` is the command ``torchcc``."""

from torchcc.cli import main

if __name__ == "__main__":
    main()
