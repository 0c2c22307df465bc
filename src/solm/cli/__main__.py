"""`python -m solm.cli`."""

from solm.cli.main import main

main()
