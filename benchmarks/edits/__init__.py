"""Random edits of what users hand to the project; `benchmarks/random_edits.py` is the command."""
