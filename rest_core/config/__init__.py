"""Configuration: one typed section a stage (schema.py; rl.py has that of rest-rl), profiles and overrides (loading.py).

A profile is a YAML file with the sections of `Config`; the docstring under a field says what it does.
"""

# ruff: noqa: F401, F403  (every section is imported from here)
from rest_core.config.loading import load, profile_folder, profiles, validate, with_overrides
from rest_core.config.rl import *
from rest_core.config.schema import *
from rest_core.config.section import Section
