"""`python -m worldenv_cli`, which is also what torchrun and accelerate launch."""

from .cli import main

if __name__ == "__main__":
    main()
