"""Commands for a Kubeflow Pipelines installation: submit, follow, read, retry, stop, schedule.

    client.py     the connection: kfp's client with time limits, retries of reads and errors in one line
    network.py    proxies and certificate authorities, as the environment names them
    errors.py     requests that failed, in one line that says what to do
    request.py    a configuration and a platform as the request that creates a run
    submit.py     the experiment, the pipeline version and the run, none of them created twice
    schedules.py  recurring runs
    runs.py       finding runs, and their stages
    follow.py     a run's stages until it ends
    logs.py       logs of a stage's pods
    tables.py     runs, stages and schedules as tables

docs/commands.md describes the requests, and the messages when something fails.
"""
