"""`python -m clickwake` is the `clickwake` command."""

from clickwake.cli import main

main()
