# Every verb of `plan`, and the server, for CPUs:
#   docker build -t vlm-planner .
#   docker run -p 8000:8000 -v "$PWD":/plans vlm-planner serve plan.json --host 0.0.0.0 --api-key SECRET
# For GPUs: --build-arg TORCH_INDEX= an index with builds for them, and docker run --gpus all.
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY planner planner
COPY calibrate calibrate
COPY profiles profiles
COPY reports/reference reports/reference
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "$(grep ^torch== constraints.txt)" \
    && pip install --no-cache-dir -c constraints.txt '.[serve]' \
    && useradd --create-home planner
USER planner
WORKDIR /plans
EXPOSE 8000
ENTRYPOINT ["plan"]
CMD ["--help"]
