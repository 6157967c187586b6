"""`python -m rest_core.cli`: the same as `rest`."""

from rest_core.cli import main

main()
