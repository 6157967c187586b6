"""What is said and done when a run on a cluster has ended, however it ended: the work of the exit task.

The exit task knows little by itself: KFP tells it whether the whole has failed, in some versions with a message, never
which stage. So it asks MLflow, where every stage has recorded how it ended, and the Kubernetes API for the pods, where
it may: a killed pod tells nobody.
"""
