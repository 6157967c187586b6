"""BFCL (Berkeley Function-Calling Leaderboard), single-turn categories, with the official questions and checkers."""
