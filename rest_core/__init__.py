"""ResT: reshaped token-level policy gradients for tool-use language models (arXiv 2509.21826)."""

import os

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other. Where anything else runs on the machine, a spinning thread keeps
# the core from the one that it waits for, and an operation takes a slice of the scheduler: milliseconds in place of
# microseconds. OpenMP reads this when torch is imported, so it stands here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
