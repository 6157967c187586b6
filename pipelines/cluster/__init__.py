"""Talking to a Kubeflow Pipelines installation: submit, follow, read, retry, stop, schedule.

    connection.py   the client, from --host, token, kfp's context file or the pod's identity
    transport.py    every request: time limits, retries of reads only, answers that are no JSON
    errors.py       what went wrong, in one line
    once.py         what changes something is sent once, then looked for
    render.py       a configuration and a platform as what is sent
    submit.py       the experiment, the pipeline version, the run
    runs.py         find, list and read runs; retry and stop them
    follow.py       a run's stages while it goes
    logs.py         what the pods wrote
    schedule.py     recurring runs
    show.py         tables of all that

docs/commands.md says what is sent, and what a user sees when something fails.
"""
