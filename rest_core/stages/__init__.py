"""One function a stage: typed configuration and input folders in, an output folder and figures out.

The same function runs from the command line, under kfp.local, in a container and on a cluster. Each fills `out`,
writes `metrics.json` and, last of all, `manifest.json`; an error that the user can mend is also left as `error.json`.
A stage that is switched off passes its input on, or says in its manifest that it was skipped and why. Where a storage
location is configured, large outputs go there, and the folder refers to them (`rest_core.operations.handoff`).
`rest_core.operations.catalogue` says of each stage how it is called and where it runs.
"""

from rest_core.stages.cluster import preflight, report_status
from rest_core.stages.comparison import aggregate, compare_policies
from rest_core.stages.data import prepare_data
from rest_core.stages.evaluation import evaluate_api_bank, evaluate_bfcl
from rest_core.stages.registration import compare_and_register
from rest_core.stages.serving import deploy_model
from rest_core.stages.training import rest_rl, sft_warmup

__all__ = [
    "aggregate",
    "compare_and_register",
    "compare_policies",
    "deploy_model",
    "evaluate_api_bank",
    "evaluate_bfcl",
    "preflight",
    "prepare_data",
    "report_status",
    "rest_rl",
    "sft_warmup",
]
