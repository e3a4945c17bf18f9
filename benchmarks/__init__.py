"""Ours and the peers, measured in turns: see `benchmarks.__main__`."""

import tasks  # noqa: F401  # before numpy, which it sets up as for a flow
