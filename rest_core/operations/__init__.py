"""What runs the stages and keeps their results; nothing here knows the method.

launch/     a training in several processes or on several nodes
preflight/  what a run needs of a cluster, looked at before a GPU is taken
status/     how a run has ended
tracking/   MLflow runs, what was not delivered yet, the model registry
handoff.py  large outputs by reference; pods.py  the pod that a stage runs in
"""
