"""Open the model store of a command."""

import argparse
from typing import TYPE_CHECKING

from schemas.config import artifacts_folder

if TYPE_CHECKING:
    from tasks.registry.store import ModelStore


def open_store(options: argparse.Namespace) -> "ModelStore":
    """Return the store of ``--dataset`` after reading the remote. Write its page if anything was copied."""
    from tasks.registry.store import ModelStore

    store = ModelStore.of(artifacts_folder(options.artifacts_dir), options.dataset).refresh()
    if store.copied:
        from tasks.reports.versions_page import write_versions_page

        write_versions_page(store)
    return store
