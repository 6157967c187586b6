"""The container images of the components: one a target of the Dockerfile, as `make image` tags them."""

from rest_core import __version__

TARGETS = ("base", "train", "evaluate")


def image(target: str) -> str:
    """The image of a target ("base", "train" or "evaluate") that was built on this machine, of this version."""
    return f"rest-pipelines-{target}:{__version__}"
