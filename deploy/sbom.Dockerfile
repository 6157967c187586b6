# The bill of materials of an image of `make image`, by a program that is not in that image: `make sbom`.
ARG IMAGE
FROM ${IMAGE}
USER 0
ARG PIP_INDEX_URL
COPY sbom.txt /requirements/
RUN python3 -m venv /opt/sbom \
    && /opt/sbom/bin/python -m pip install --no-cache-dir --no-deps --require-hashes -r /requirements/sbom.txt
CMD ["/opt/sbom/bin/cyclonedx-py", "environment", "--output-reproducible", "/opt/venv/bin/python"]
