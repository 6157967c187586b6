"""The container images of the components, as `make image` builds them; `platform.yaml` may name others."""

from rest_core import __version__


def image(target: str) -> str:
    """The image built here from a target of the Dockerfile: base, train or evaluate."""
    return f"rest-pipelines-{target}:{__version__}"
