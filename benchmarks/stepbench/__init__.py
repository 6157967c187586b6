"""Parts of `benchmarks/rl_step.py`: works and models, the sides and their process, the machine, the report."""
