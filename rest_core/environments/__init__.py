"""Tool environments, and the loop that has a policy act in many of them at once."""
