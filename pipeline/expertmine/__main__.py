"""``python -m expertmine``."""

from expertmine.cli.app import main

main()
