import subprocess
import sys

_SCRIPT = """
import inspect, sys
from tasks.checks.expectations import fresh_context
fresh_context()
inspect.getmodule(fresh_context)
loaded = [module for module in ("scipy.stats._stats_py", "altair.vegalite") if module in sys.modules]
assert not loaded, loaded
import pickle
import scipy.stats.distributions
from altair import *
assert Chart.__name__ == "Chart"
assert pickle.loads(pickle.dumps(scipy.stats.norm(0, 1))).cdf(0) == 0.5
from great_expectations.expectations.core import expect_column_kl_divergence_to_be_less_than as theirs
assert theirs.stats.entropy([1.0]) == 0
assert theirs.alt.Chart.__name__ == "Chart"
import altair, scipy.stats
assert scipy.stats.norm.cdf(0) == 0.5 and theirs.stats.norm is scipy.stats.norm and altair.__version__
"""


def test_chart_libraries_are_imported_on_first_use() -> None:
    finished = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
