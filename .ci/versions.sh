#!/usr/bin/env bash
# The fast part of the suite that touches every dependency, with the lowest or the highest versions, in a new environment:
#   bash .ci/versions.sh lowest       the lower bounds of pyproject.toml (.ci/lowest.txt)
#   bash .ci/versions.sh highest      the newest versions tested (.ci/highest.txt)
# PYTHON names the interpreter (python3). The environment, up to 8 GB, is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
bound="${1:-}"
if [[ ! "$bound" =~ ^(lowest|highest)$ || $# -gt 1 ]]; then
  echo "versions.sh: error: bound=$*: no such set of versions; give lowest or highest" >&2
  exit 2
fi

# Configs and command line, training and resuming, U-Nets and pipelines, data, metrics, charts, W&B, and the warnings.
suite=(
  tests/project/test_architecture.py
  tests/project/test_versions.py
  tests/networks/test_networks.py
  tests/training/test_training_math.py
  tests/training/test_training_resume.py
  tests/security/test_wrong_configs.py
  tests/data/test_sources.py
  tests/data/test_stream.py
  tests/models/test_pipelines.py
  tests/metrics/test_extractors.py
  tests/metrics/test_fidelity.py
  tests/metrics/test_memorization.py
  tests/metrics/test_kernel_distance.py
  tests/callbacks/test_metric_callback.py
  tests/callbacks/test_panels.py
  tests/report/test_charts.py
  tests/audit/test_audit_command.py
  tests/tracking/test_wandb.py
  tests/project/test_docker.py
  tests/cli/test_entrypoint.py
)

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
python="$place/venv/bin/python"
"$python" -m pip install --quiet --progress-bar off --editable '.[test]' --constraint ".ci/$bound.txt"
"$python" -m pip list --format=freeze | grep --ignore-case --fixed-strings --file=<(sed -n 's/==.*/==/p' ".ci/$bound.txt")
OMP_WAIT_POLICY=PASSIVE WANDB_MODE=disabled "$python" -m pytest -p no:cacheprovider "${suite[@]}"
