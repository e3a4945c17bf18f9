"""The worker process of the stages that use Keras: training, and stored models.

Run as ``python -m tasks.model.worker``, see `tasks.runtime.worker_process`.
"""

from tasks.model import evaluation, fit, inference
from tasks.model.backend import import_backend
from tasks.model.warm_up import unmapped_libraries
from tasks.runtime.worker_process import serve_jobs


def _prepare() -> None:
    with unmapped_libraries():
        import_backend()


if __name__ == "__main__":
    serve_jobs({module.__name__: module.main for module in (fit, inference, evaluation)}, _prepare)
