"""`python -m host.cli`: the command line without an installed script."""

from host.cli import main

main()
