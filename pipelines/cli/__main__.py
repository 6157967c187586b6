"""`python -m pipelines.cli`: the same as `rest`."""

from pipelines.cli import main

main()
