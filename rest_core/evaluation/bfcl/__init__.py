"""BFCL (Berkeley Function-Calling Leaderboard), single-turn categories, with the official questions and checkers."""

from rest_core.evaluation.bfcl.results import HANDLER
from rest_core.evaluation.bfcl.run import evaluate

__all__ = ["HANDLER", "evaluate"]
