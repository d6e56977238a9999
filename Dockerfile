# The environment of the lock and the workflow, for one machine without a GPU driver of its own:
#     docker build -t plm-depth .
#     docker run --rm -v "$PWD/results:/opt/plm-depth/results" plm-depth            the mini study
#     docker run --rm -v ... plm-depth snakemake --cores all --configfile config/config.yaml
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 plm \
    && install --directory --owner=plm /opt/plm-depth

WORKDIR /opt/plm-depth
USER plm

# The environment first: a changed workflow does not install it again. PIP_ARGS can name another index.
ARG PIP_ARGS=""
COPY --chown=plm Makefile ./
COPY --chown=plm envs envs
RUN make setup PIP_ARGS="$PIP_ARGS"

COPY --chown=plm . .
ENV PATH="/opt/plm-depth/.venv/bin:$PATH"
CMD ["make", "study"]
