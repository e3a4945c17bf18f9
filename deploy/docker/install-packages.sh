#!/bin/sh
# Install the locked packages of the TensorFlow build $1, cpu or gpu, and the project into /opt/venv.
set -eu

/opt/uv/bin/uv pip install --python /opt/venv --no-cache --compile-bytecode \
    --require-hashes -r "requirements/$1.lock" -r requirements/remote.lock -r requirements/dask.lock
# The headers of TensorFlow's C++ API (300 MB) and the tests of packages (80 MB) are in the wheels, and no run reads them.
find /opt/venv -type d \( -path '*/tensorflow/include' -o -regex '.*/\(pandas\|pyarrow\|scipy\)\(/.*\)?/tests' \) \
    -prune -exec rm -r {} +
# The project is installed as a path, /app, so that a change of code changes nothing here.
touch README.md
/opt/uv/bin/uv pip install --python /opt/venv --no-cache --no-deps --no-build-isolation \
    --config-setting editable_mode=compat --editable .
