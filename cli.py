"""`python cli.py …` is `surgeon …` from a checkout, without installing it."""

from surgeon.cli import main

if __name__ == "__main__":
    main()
