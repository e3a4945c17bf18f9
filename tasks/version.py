"""Version: add the evaluated model to the store as an immutable version, and decide whether it becomes champion."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.runtime import flow_run

from schemas.config import PromotionConfig, TrainingConfig
from schemas.contract import SPLITS, Split, contract_of
from schemas.errors import CandidateRejected, LostRace, StoredArtifactError, VersionNotFound
from schemas.layout import (
    GOLDEN_NAME,
    METRICS_NAME,
    PREDICTIONS_NAME,
    PROFILE_NAME,
    REPORT_NAME,
    TOPOLOGY_NAME,
    VERDICT_NAME,
    WEIGHTS_NAME,
)
from schemas.references import Evaluation, ModelVersion, PreparedData, StageRecord, TrainedModel, ValidatedSplit
from schemas.store import Verdict, VersionFacts
from tasks.data.splits import open_split
from tasks.registry.alias_log import CHAMPION, alias_event
from tasks.registry.bom import write_bom
from tasks.registry.promotion import Champion, data_origin, decide, measure_candidate, with_minima
from tasks.registry.provenance import collect_facts, lineage, require_one_contract
from tasks.registry.signatures import SIGNING_VARIABLE, training_key, verify_key
from tasks.registry.store import ModelStore, StoredVersion
from tasks.registry.verify import check_version
from tasks.registry.version_events import send_unsent
from tasks.reports.mlflow_sync import update_mlflow
from tasks.reports.version_report import commands, write_report
from tasks.reports.version_summary import summarize_version
from tasks.reports.versions_page import write_versions_page
from tasks.runtime.events import StageStarted, emit
from tasks.runtime.files import sha256_file, write_json
from tasks.runtime.materialize import materialize
from tasks.runtime.prefect_artifacts import name_flow_run, publish_file_link, publish_markdown, publish_table
from tasks.runtime.prefect_events import sender_of_run
from tasks.runtime.stage_cache import stage_key
from tasks.runtime.stages import VERSION

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

logger = logging.getLogger(__name__)

NOTHING_NEW_TAG = "nothing-new"


@task(name="version", task_run_name="version", cache_policy=NO_CACHE)
def version(
    data: dict[Split, ValidatedSplit],
    prepared: PreparedData,
    trained: TrainedModel,
    evaluation: Evaluation,
    config: TrainingConfig,
    promotion: PromotionConfig,
    artifacts_dir: Path,
    note: str | None = None,
    further: Sequence[StageRecord] = (),
) -> ModelVersion:
    """Add a version, unless one with the same cache key exists, and move the champion if its verdict promotes it.

    note: a person's remark, stored with a new version.
    further: records of stages whose outputs are in no other argument, for the lineage.

    The version is signed with the key of FASHION_ANN_SIGNING_KEY. If FASHION_ANN_VERIFY_KEY is set without it, the
    verdict does not promote: the version waits for a signature.

    Raises `CandidateRejected` for a version below a minimum. It is in the store nevertheless.
    """
    emit(StageStarted(VERSION.name, None))
    data = {split: materialize(validated, artifacts_dir) for split, validated in data.items()}
    prepared, trained = materialize(prepared, artifacts_dir), materialize(trained, artifacts_dir)
    evaluation = materialize(evaluation, artifacts_dir)
    read = [record for validated in data.values() for record in (validated.data.record, validated.record)]
    require_one_contract(prepared.dataset, [*read, prepared.record, evaluation.record])
    promotion = with_minima(promotion, contract_of(prepared.dataset))
    store = ModelStore.of(artifacts_dir, prepared.dataset)
    private_key, signature_required = training_key(), verify_key() is not None
    key = stage_key(
        VERSION,
        {
            # A version has the names of classes, which none of the outputs below depends on.
            "contract": contract_of(prepared.dataset).digest,
            "prepared": prepared.sha256,
            "trained": trained.record.key,
            "weights": trained.weights_sha256,
            "profile": sha256_file(data["train"].record.path / PROFILE_NAME),
            # Other bounds give another verdict, and a stored verdict never changes.
            "promotion": promotion.model_dump(),
            "further": [record.key for record in further],
        },
    )

    def build(folder: Path, number: int) -> VersionFacts:
        _copy_outputs(folder, data, trained, evaluation)
        champion = _champion(store)
        origin = data_origin({split: validated.data.origin for split, validated in data.items()})
        verdict = decide(measure_candidate(prepared, evaluation, champion, origin), promotion)
        if signature_required and private_key is None and verdict["outcome"] == "promoted":
            waiting = f"Waiting for a signature, because {SIGNING_VARIABLE} is not set:"
            verdict |= {"outcome": "waiting", "reason": verdict["reason"].replace("Promoted:", waiting)}
        write_json(folder / VERDICT_NAME, verdict)
        before = None if champion is None else champion.number
        event = alias_event(before, number, "train-fashion-mnist", verdict["reason"], flow_run.id)
        seconds = _seconds_since_start()
        facts = collect_facts(
            data, prepared, trained, evaluation, config, promotion, verdict, event, key, seconds, note, further
        )
        write_bom(folder, number, facts)
        images = open_split(prepared.record.path, "test").images
        write_report(folder, number, facts.as_json(), images, contract_of(prepared.dataset))
        return facts

    with store.lock():
        stored, created = _add_once(store, key, build, private_key)
        if not created:
            logger.info("version %d already covers this data, code and configuration", stored.number)
            if note not in (None, stored.manifest.note):
                logger.warning("the note is not stored, because version %d exists and never changes", stored.number)
        is_champion = store.aliases.champion() == stored.number
        decided = any(event.to == stored.number and event.alias == CHAMPION for event in store.aliases.read())
    write_versions_page(store)
    send_unsent(store, sender_of_run())
    update_mlflow(store)
    stages = lineage(data, prepared, trained, evaluation, further)
    _publish(stored, None if created else stages, champion=is_champion)
    verdict = stored.manifest.verdict
    if verdict.outcome == "refused":
        raise CandidateRejected(
            f"Version {stored.number} is stored in {stored.folder} and is not champion. {verdict.reason} "
            "`fashion-ann tune` searches for a better recipe. [promotion] in the dataset file sets other minima; "
            "--minimum-accuracy, --minimum-recall and --minimum-robustness set those of one run."
        )
    return ModelVersion(
        version=stored.number,
        path=stored.folder,
        created=created,
        champion=is_champion,
        waiting=verdict.outcome == "waiting" and not decided,
        verdict=verdict.reason,
        test_accuracy=stored.manifest.test_accuracy,
        test_loss=stored.manifest.test_loss,
    )


def _add_once(
    store: ModelStore,
    key: str,
    build: Callable[[Path, int], VersionFacts],
    private_key: "Ed25519PrivateKey | None",
) -> tuple[StoredVersion, bool]:
    """Return the version with the cache key, and whether this call added it. The caller holds the lock of the store.

    Decides again if another machine adds a version or moves an alias meanwhile: the champion may have changed.
    """
    while True:
        for line in store.recover():
            logger.warning("%s", line)
        # An unsigned version, which any writer of the store could have added, does not replace the signed one.
        if (stored := _stored_earlier(store, key, accepted=private_key is not None)) is not None:
            return stored, False
        with suppress(LostRace):
            stored = store.add(build, private_key)
            break
    # If the process is killed before the next line, the next `recover` logs the promotion, on any machine.
    if (event := stored.manifest.verdict.event) is not None:
        try:
            store.aliases.append(event)
        except LostRace:
            store.recover()
    return stored, True


def _copy_outputs(
    folder: Path, data: Mapping[Split, ValidatedSplit], trained: TrainedModel, evaluation: Evaluation
) -> None:
    """Copy the files of a version, and check that the model is the one that was trained."""
    for record, names in (
        (trained.record, (TOPOLOGY_NAME, WEIGHTS_NAME, GOLDEN_NAME)),
        (evaluation.record, (METRICS_NAME, PREDICTIONS_NAME)),
        (data["train"].record, (PROFILE_NAME,)),
    ):
        for name in names:
            shutil.copyfile(record.path / name, folder / name)
    for name, expected in ((TOPOLOGY_NAME, trained.topology_sha256), (WEIGHTS_NAME, trained.weights_sha256)):
        if (actual := sha256_file(folder / name)) != expected:
            raise StoredArtifactError(
                f"{trained.record.path / name} changed since it was trained: expected sha256 {expected}, received "
                f"{actual}. Run again to repeat the training."
            )


def _stored_earlier(store: ModelStore, key: str, *, accepted: bool) -> StoredVersion | None:
    """Return the result of `ModelStore.find_by_inputs`, None if its verdict, which a run publishes, is unreadable."""
    stored = store.find_by_inputs(key, accepted=accepted)
    try:
        if stored is not None:
            stored.read_json(VERDICT_NAME, Verdict)
    except StoredArtifactError as error:
        logger.warning("%s", error)
        return None
    return stored


def _champion(store: ModelStore) -> Champion | None:
    number = store.aliases.champion()
    if number is None:
        return None
    fault = origin = digests = None
    try:
        champion = store.version(number)
        origin = data_origin({split: champion.manifest.data.split(split).origin for split in SPLITS})
        check_version(champion)
    except (StoredArtifactError, VersionNotFound) as error:
        fault = str(error)
    else:
        digests = champion.digests
    return Champion(number, store.folder(number), fault, origin, digests)


def _seconds_since_start() -> float | None:
    """Return the seconds since the flow run started in this process, None outside of one."""
    context = FlowRunContext.get()
    return None if context is None else round((datetime.now(UTC) - context.start_time).total_seconds(), 3)


def _publish(stored: StoredVersion, stages: Sequence[Mapping[str, Any]] | None, *, champion: bool) -> None:
    """Publish the version. stages: those of this run if an earlier run created the version, else None."""
    manifest, number = stored.manifest, stored.number
    dataset, name = manifest.dataset, f"v{number:04d}"
    verdict = stored.read_json(VERDICT_NAME, Verdict)
    outcome = verdict.outcome if stages is None else NOTHING_NEW_TAG
    name_flow_run(f"{dataset} {name} seed {manifest.seed}", (dataset, name, outcome))
    publish_markdown(
        f"{dataset}-version",
        summarize_version(stored, stages, champion=champion),
        f"Version {number}: result of this run",
    )
    publish_file_link(
        f"{dataset}-report",
        stored.folder / REPORT_NAME,
        "The report is a file on the machine of the run. Browsers block links from a server to a file: copy the "
        f"address, or run `{commands(manifest.as_json())['report']}` there",
    )
    publish_table(
        f"{dataset}-verdict",
        [
            {
                "result": "met" if rule.holds else "not met",
                "rule": rule.rule,
                "value": rule.finding,
                "expected": rule.bound,
            }
            for rule in verdict.rules
        ],
        f"Version {number}: {verdict.reason}",
    )
