"""Preflight: whether a run will find what it needs of its surroundings, before a GPU is taken.

Each check is one function of its own that looks for real (creates, writes, reads back, deletes). `run.run_checks` calls
them all and puts every problem into one report. What can only be seen with a GPU in hand (`gpu.require_memory`) the
training stages check first of all.
"""
