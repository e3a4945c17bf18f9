"""Measurements of the pipeline and its peers: see `benchmarks.__main__`."""

import tasks  # noqa: F401  # before numpy, because it sets numpy's environment variables as for a flow
