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


_FIELDS = """
import re
from hashlib import sha256

def described(field):
    validators = [getattr(one, "__qualname__", "") for one in [*field.validators, *(field.pre_validators or ())]]
    parts = [described(part) for part in field.sub_fields or []]
    text = f"{field!r} {field.alias} {field.allow_none} {sorted(field.class_validators)} {field.field_info!r}"
    return [re.sub(" at 0x[0-9a-f]+", "", text), validators, parts]

def models(parent):
    for model in parent.__subclasses__():
        yield [model.__module__, model.__qualname__, [described(field) for field in model.__fields__.values()]]
        yield from models(model)

from pydantic.v1 import BaseModel
found = sorted(models(BaseModel))
print(len(found), sha256(repr(found).encode()).hexdigest())
"""
# typing returns the first of two equal types, such as Union[int, str] and Union[str, int]: jinja2 comes first in both.
_PLAIN = "import sys, jinja2\nsys.modules['sqlalchemy'] = None\nimport great_expectations.expectations\n"
_OURS = "import jinja2\nfrom tasks.checks.expectations import import_great_expectations\nimport_great_expectations()\n"


def test_models_have_the_fields_that_pydantic_gives_them() -> None:
    (plain, count), (ours, _) = (
        reversed(
            subprocess.run([sys.executable, "-c", program + _FIELDS], capture_output=True, text=True).stdout.split()
        )
        for program in (_PLAIN, _OURS)
    )
    assert int(count) > 500
    assert ours == plain
