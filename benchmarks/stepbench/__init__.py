"""Parts of `benchmarks/rl_step.py`: the works, the two sides, their measurement and the report."""
