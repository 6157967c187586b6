"""The pipeline's stages as KFP components: thin wrappers of `rest_core.stages`, one folder a stage."""
