ARG BASE_IMAGE=python:3.12-slim
FROM ${BASE_IMAGE}

# A virtual environment of its own: Debian's Python, as a base, refuses packages from pip.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
WORKDIR /counterflow

# The dependencies (several GB) are a layer of their own, made again only when they change.
COPY pyproject.toml constraints.txt ./
RUN python3 -m venv /opt/venv \
    && python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > /tmp/requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt

COPY README.md LICENSE ./
COPY src src
COPY conf conf
COPY launch launch
# Runs are written below the working directory, by a user who owns nothing else here.
RUN pip install --no-cache-dir --no-deps . \
    && rm -rf build src/*.egg-info \
    && useradd --create-home counterflow \
    && install -d -o counterflow -g counterflow runs \
    && chown counterflow:counterflow .
USER counterflow

ENTRYPOINT ["torchrun"]
CMD ["--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=4", "launch/train.py"]
