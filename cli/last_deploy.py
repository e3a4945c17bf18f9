"""Compare the server with our files and with the last deploy, so that an operator's changes stand.

A field follows the files while the server has the value that was deployed last. Any other value was set by an operator:
it is kept and reported. `deploy --reset` replaces it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, cast

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.exceptions import ObjectAlreadyExists

Fields = Mapping[str, Any]
Digests = dict[str, str]

# The words for False and True.
_SWITCHES = {
    "active": ("paused", "active"),
    "paused": ("active", "paused"),
    "is_paused": ("active", "paused"),
    "enabled": ("disabled", "enabled"),
}
_LONGEST_VALUE = 80


@dataclass
class Report:
    """The changes of a deploy on the server, and the differences from our files that it kept. One line each."""

    reset: bool = False
    changed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def keep(self, difference: str) -> None:
        """Add a difference that the deploy left as it is."""
        self.kept.append(f"{difference}. Kept; `fashion-ann deploy --reset` restores the file.")


class LastDeploy:
    """The parts of a deployment, or all automations, as they were deployed last.

    A Prefect variable keeps a digest of each field. It holds 5,000 characters, so each deployment has its own.
    """

    def __init__(self, client: SyncPrefectClient, report: Report, name: str, source: str) -> None:
        """Read the variable. ``source`` is the file that defines the parts."""
        self._client = client
        self.report = report
        self._source = source
        self._variable = "fashion_ann_deployed_" + re.sub(r"\W", "_", name.lower())
        stored = client.read_variable_by_name(self._variable)
        self._stored = None if stored is None else cast(dict[str, Digests], stored.value)
        self.parts: dict[str, Digests] = {} if report.reset else dict(self._stored or {})
        self._next: dict[str, Digests] = {}

    @property
    def known(self) -> bool:
        """Return whether the parts on the server can be compared with an earlier deploy, or are to be replaced."""
        return self._stored is not None or self.report.reset

    def updates(self, part: str, server: Fields | None, file: Fields) -> dict[str, Any]:
        """Return the fields of ``file`` to write to the server: all of them if the part is to be created."""
        last = self.parts.get(part, {})
        self._next[part] = digests = _digests(file)
        if server is None and last:
            self.report.keep(f"{part}: deleted on the server; {self._source} has it")
            self._next[part] = last
            return {}
        if server is None:
            self.report.changed.append(f"{part}: created")
            return dict(file)
        current = _digests({name: server[name] for name in file})
        updates = {}
        for name in (name for name in file if current[name] != digests[name]):
            if self.report.reset or last.get(name) == current[name]:
                updates[name] = file[name]
            else:
                self.report.keep(_difference(part, name, server[name], file[name], self._source))
                digests[name] = last.get(name, "unknown")
        if updates:
            self.report.changed.append(f"{part}: {', '.join(updates)} updated")
        return updates

    def adopt(self, part: str, server: Fields) -> None:
        """Treat fields of the server as deployed by us if no deploy has stored them: earlier versions had none."""
        self.parts[part] = _digests(server) | self.parts.get(part, {})

    def removes(self, part: str, server: Fields) -> bool:
        """Return whether to delete a part that the file does not have: it was deployed once and not edited since."""
        if self.report.reset or self.parts.get(part) == _digests(server):
            self.report.changed.append(f"{part}: deleted")
            return True
        self.report.keep(f"{part}: only on the server, not in {self._source}")
        if part in self.parts:
            self._next[part] = self.parts[part]
        return False

    def leftover(self, kind: str) -> list[str]:
        """Return the parts of earlier deploys whose names start with ``kind`` and that no file has any more."""
        return [part for part in self._stored or {} if part.startswith(kind) and part not in self._next]

    def remembered(self, part: str) -> Digests:
        """Return what the last deploy stored with `remember`."""
        return (self._stored or {}).get(part, {})

    def remember(self, part: str, values: Digests) -> None:
        """Store values that cannot be read from the server."""
        self._next[part] = values

    def save(self) -> None:
        """Store the digests for the next deploy."""
        if self._next == self._stored:
            return
        try:
            self._client.create_variable(VariableCreate(name=self._variable, value=self._next))
        except ObjectAlreadyExists:
            self._client.update_variable(VariableUpdate(name=self._variable, value=self._next))


def _digests(fields: Fields) -> Digests:
    return {name: sha256(_text(value).encode()).hexdigest()[:8] for name, value in fields.items()}


def _text(value: Any) -> str:
    """Return canonical JSON. Triggers contain sets, intervals and ids."""
    return json.dumps(
        value, sort_keys=True, default=lambda other: sorted(other) if isinstance(other, set) else str(other)
    )


def _difference(part: str, name: str, server: Any, file: Any, source: str) -> str:
    if name in _SWITCHES:
        words = _SWITCHES[name]
        return f"{part}: {words[server]} on the server; {source} has it {words[file]}"
    if max(len(_text(server)), len(_text(file))) > _LONGEST_VALUE:
        return f"{part}: {name} on the server differs from {source}"
    return f"{part}: {name} is {_text(server)} on the server; {source} has {_text(file)}"
