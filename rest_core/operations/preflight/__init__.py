"""Preflight: whether a run will find what it needs of its surroundings, before a GPU is taken.

Each check is one function that really tries (creates, writes, reads back, deletes). It returns what it found, in one
line; it raises `UserError` for a problem, and `NotAllowed` where it cannot look. `checks.run_checks` calls them all and
puts every problem into one report. The free memory of a GPU (`gpu.require_memory`) is checked by the training stages,
before they load anything.
"""
