"""The container image of the components where the compiler is not told another (`rest compile --image`)."""

from rest_core import __version__

BASE_IMAGE = f"rest-pipelines:{__version__}"
