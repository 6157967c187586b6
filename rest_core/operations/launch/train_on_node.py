"""What Kubeflow Trainer runs in every process of every node.

The SDK sends the function's source, so it stands alone; on a cluster it passes through a shell's here-document, in
which dollar signs, backquotes and backslashes would be replaced: there are none.
"""

from __future__ import annotations


def train_on_node(job):  # type: ignore[no-untyped-def]
    """Train as one process of a job.

    Args:
        job: where the job's description lies; in a mapping under its own name from the SDK's local backend.
    """
    from rest_core.operations.launch import worker

    worker.run_on_node(job["job"] if isinstance(job, dict) else job)
