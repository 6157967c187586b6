"""Tags of this project's runs in MLflow."""

PIPELINE_RUN_TAG = "rest.pipeline_run"
KIND_TAG = "rest.kind"  # "pipeline" on a parent run, "trial" on one of an ablation's trials, "stage" on a nested one
TRIAL_TAG = "rest.trial"  # on a trial's run and on its stages' runs: the trial's name
SCHEME_TAG = "rest.scheme"  # likewise: the name of its scheme
SETTINGS_TAG = "rest.scheme_settings"  # likewise: what the scheme replaces in `rl` besides the weights, if anything
JOINED_TAG = "rest.joined"  # on a parent that somebody else (KFP) made
ERROR_TAG = "rest.error"  # on a stage's run; on the parent "rest.error/<stage>"
INPUT_TAG = "rest.input/"  # on a stage's run, with the input's name: where it was read from
STAGE_TAG = "rest.stage"
DTYPE_TAG = "rest.dtype"  # on a training's run: what it computed in on this machine
JOURNAL_TAG = "rest.spool_id"  # on a stage's run: its journal's
IDENTITY_TAG = "rest.identity"  # on a logged model: its checkpoint's hash, or where it was taken from
MADE_BY_TAG = "rest.made_by"  # on a logged model: the run that has made it
REGISTERED_TAG = "rest.registered"  # on the run that registers a version: "NAME version N"
