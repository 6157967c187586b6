"""Training stages in several processes: on the GPUs of this machine (`launcher`), or on several nodes (`train_job`).

Each process runs the stage's own command (`rest sft`, `rest train`), as it does under `accelerate launch` by hand.
"""
