"""`python -m bdh` is the command line."""

from bdh.cli import main

main()
