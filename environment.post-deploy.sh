#!/usr/bin/env bash
# What environment.yml cannot say: the locked versions are installed without their dependencies, because
# fairchem-core's own pins are older than what it runs with. Run from the repository.
set -euo pipefail
python -m pip install --no-deps -r requirements.lock
python -m pip install --no-deps --no-build-isolation --editable .
