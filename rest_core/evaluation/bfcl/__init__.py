"""BFCL (Berkeley Function-Calling Leaderboard), with the official questions and checkers."""
