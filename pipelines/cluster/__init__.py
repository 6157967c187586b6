"""Talking to a Kubeflow Pipelines installation: submit, follow, read, retry, stop, schedule.

    connection.py   the client, from --host, token, kfp's context file or the pod's identity
    kubeconfig.py   the kubeconfig: whether there is one, and what it says
    credentials.py  the token, cookie and header of requests, checked before they are sent
    transport.py    every request: time limits, retries of reads only
    answers.py      answers: JSON objects with the ids that belong to them, or an error
    errors.py       what went wrong, in one line
    words.py        words of others in one line, nothing for a terminal to obey
    once.py         what changes something is sent once, then looked for
    render.py       a configuration and a platform as what is sent
    submit.py       the experiment, the pipeline version, the run
    lookup.py       what is there under an id or a name
    runs.py         find, list and read runs; retry and stop them
    follow.py       a run's stages while it goes
    logs.py         what the pods wrote
    schedule.py     recurring runs
    show.py         tables of all that

docs/commands.md says what is sent, and what a user sees when something fails.
"""
