"""What the flows are made of."""

import os

# Read when numpy is imported. Its products of matrices take milliseconds here; threads for them would spin for longer,
# on cores that others use. The backend that trains has threads of its own.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
