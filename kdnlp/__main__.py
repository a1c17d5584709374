"""`python -m kdnlp`, and `accelerate launch -m kdnlp`."""

from kdnlp.cli import main

if __name__ == "__main__":
    main()
