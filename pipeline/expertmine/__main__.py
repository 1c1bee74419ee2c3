"""``python -m expertmine``."""

from expertmine.cli import main

main()
