"""What runs in which order: the pipeline, its compiler, and its local runner."""
