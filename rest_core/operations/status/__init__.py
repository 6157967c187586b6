"""The exit task of a run on a cluster: report how the run ended, and close and remove what it left.

KFP gives the exit task the state of the whole, in some versions with a message, never the stage that failed. MLflow has
the end of every stage that could record it; the Kubernetes API has the pods that were killed or never started.
"""
