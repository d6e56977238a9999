# The environment of the lock, and the workflow, in a container. In a clone:
#     docker build -t plm-depth .
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/opt/plm-depth" plm-depth                         mini study
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/opt/plm-depth" plm-depth snakemake --cores all   paper study
# All that a run makes (results, logs, downloads, Snakemake's own records) then lies in the clone and is yours, and the
# next run goes on from it; after one that was killed: make resume OPTIONS=--host-is-gone. A rootless docker or podman
# wants --user 0:0 instead. Without a clone the copy in the image runs, and only its results are kept:
# -v "$PWD/results:/opt/plm-depth/results".
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends make git tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 plm \
    && install --directory --owner=plm /opt/plm-depth /opt/venv

WORKDIR /opt/plm-depth
USER plm

# Outside the workflow's folder, which a clone covers. A user of --user has no home: caches go to /tmp.
ENV VENV=/opt/venv PATH="/opt/venv/bin:$PATH" HOME=/tmp USER=plm PIP_NO_CACHE_DIR=1

# The environment first: a changed workflow does not install it again. PIP_ARGS can name another index.
ARG PIP_ARGS=""
COPY --chown=plm Makefile ./
COPY --chown=plm envs envs
RUN make setup PIP_ARGS="$PIP_ARGS"

# Files keep their dates: those of envs may be newer than an environment that was kept from an earlier build.
COPY --chown=plm . .
RUN touch "$VENV/.ready" && chmod a+rwx . results resources
# A signal to the container (docker stop, Ctrl-C without a terminal) reaches every process, as in a terminal.
STOPSIGNAL SIGINT
ENTRYPOINT ["tini", "-g", "--"]
CMD ["make", "study"]
