"""What a sweep asks of data, networks and stores, in processes of its own: its parent stays small."""

from __future__ import annotations

import json
import logging
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from experiments import run
from experiments import tracking as tracked
from experiments.config.hydra_errors import disk_full, refused
from experiments.config.schema import Config, head_run
from experiments.data.types import Dataset
from experiments.errors import ConfigError, DataError
from experiments.models.network import split_network
from experiments.models.types import Backbone
from experiments.regimes import bottleneck, feature_cache, finetune
from experiments.regimes.build import build
from experiments.runs import run_directory
from experiments.storage import atomic_files
from experiments.sweeps import local, summary_files
from experiments.sweeps.plan import folders
from experiments.system import signals
from experiments.system.progress import PlainConsole, Terminal
from experiments.system.redaction import redact_credentials
from experiments.tracking import buffer, connection, queries
from experiments.tracking.queries import RunFacts
from experiments.training import runtime
from experiments.training.types import RunComponents


class PreparedJob(NamedTuple):
    """A job with what its configuration only names."""

    parts: RunComponents
    splits: Dataset
    identity: str


@contextmanager
def answering(answer: str) -> Iterator[dict[str, Any]]:
    """What the block puts into the dictionary is what the sweep reads; what goes wrong is told in a sentence."""
    signals.install()
    local.guard()
    said: dict[str, Any] = {}
    try:
        yield said
    except (ConfigError, DataError) as error:
        said = {"error": str(error)}
    except OSError as error:  # a full disk, a read-only outputs/
        text = disk_full(error) or refused(error)
        if text is None:
            raise
        said = {"error": text}
    atomic_files.write_file(Path(answer), json.dumps(said).encode())


def see(configs: Sequence[Mapping[str, Any]]) -> list[PreparedJob]:
    """Builds what jobs are made of and reads their data, each once."""
    backbones: dict[str, Backbone] = {}
    data: dict[str, Dataset] = {}
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        for plain in configs:
            config = Config.model_validate(plain)
            files = tracked.fetch(config, Path(folder))
            random = config.model.weights is None or "model.weights" in config.regime.ignores
            backbone_key = _key(
                config.model.model_dump(exclude={"head"}), random, config.data.image_size, config.runtime.precision,
                config.seed if random else None, config.trusted_packages,
            )  # fmt: skip
            parts = build(config, files, backbones.get(backbone_key))
            backbones[backbone_key] = parts.backbone
            data_key = _key(config.data.model_dump(), config.outputs)
            if data_key not in data:
                data[data_key] = run.read_data(parts, keep=False)
            splits = data[data_key]
            seen.append(PreparedJob(parts, splits, parts.identity(config, splits.fingerprint)))
    return seen


def identity(config: Config) -> str:
    """Return the identity of the run that a configuration describes: its networks are built and its data read."""
    (one,) = see([config.model_dump(by_alias=True, mode="json")])
    return one.identity


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def inspect_jobs(configs: Sequence[Mapping[str, Any]], answer: str) -> None:
    """Who the jobs are, what of them is done, what they share.

    The answer: `jobs`, a mapping each (identity; status, folder, run_id, threads of a run that is there; deleted, the
    MLflow run that was, where there is no other); `shared`,
    lines for the plan; `lacking`, whether activations are to be computed; `seconds` of a job where it is
    known; `held_back`, whether there are pictures for the winner.
    """
    with answering(answer) as said:
        first = Config.model_validate(configs[0])
        runtime.apply(first.runtime)
        connection.check(first.tracking.uri)
        seen = see(configs)
        uri = first.tracking.uri
        finished = queries.finished(uri, first.tracking.experiment) if uri else {}
        known = known_runs(first, {one.identity for one in seen}, finished)
        said["jobs"] = [{"identity": one.identity, **known.get(one.identity, {})} for one in seen]
        said["shared"], said["lacking"] = shared(seen)
        said["seconds"] = usual_seconds(first, seen[0].splits.fingerprint, finished)
        said["held_back"] = all(one.splits.test for one in seen)


def known_runs(config: Config, identities: set[str], finished: Mapping[str, RunFacts]) -> dict[str, dict[str, Any]]:
    """The runs there are of these identities: finished ones from the tracking store, begun ones from folders here.

    Args:
        finished: the runs of the tracking store, by identity.
    """
    known: dict[str, dict[str, Any]] = {}
    deleted: dict[str, dict[str, Any]] = {}
    uri = config.tracking.uri
    place = redact_credentials(uri) if uri else None
    tracked_ids = {one.run_id for one in finished.values()}
    for folder in folders(Path(config.outputs)):
        try:
            facts = run_directory.read_record(folder)
        except ConfigError:
            continue
        if facts is None or facts.get("identity") not in identities:
            continue
        stored_in = run_directory.store_of_run(folder, facts) or facts.get(
            "store"
        )  # outputs/ may have been moved since
        if (redact_credentials(stored_in) if stored_in else None) != place:
            continue
        done = facts.get("status") == "FINISHED"
        if done and uri is not None and facts.get("run_id") not in tracked_ids:
            # Deleted there, unless a later run of this identity has taken its place.
            deleted.setdefault(facts["identity"], {"deleted": facts.get("run_id")})
            continue
        if done or facts.get("status") != "PRUNED":
            status = "FINISHED" if done else "PARTIAL"
            before = known.get(facts["identity"])
            if before is None or before["status"] != "FINISHED":
                known[facts["identity"]] = {
                    "status": status, "folder": str(folder), "run_id": facts.get("run_id"),
                    "threads": None if done else facts.get("threads"),
                }  # fmt: skip
    for identity in identities & set(finished):
        if known.get(identity, {}).get("status") != "FINISHED":
            one = finished[identity]
            known[identity] = {"status": "FINISHED", "folder": one.tags.get("run_folder", ""), "run_id": one.run_id}
    return deleted | known


def shared(seen: Sequence[PreparedJob]) -> tuple[list[str], bool]:
    """What jobs have in common, in words; and whether some of it is still to be computed."""
    lines = []
    tables = [{table.name: table for table in tables_of(one)} for one in seen]
    every = {name: table for one in tables for name, table in one.items()}
    missing = sum(table.lacking_bytes for table in every.values())
    if every:
        lines.append(
            f"activations: {len(every)} tables for {sum(map(len, tables))} readings by jobs"
            + (f"; to be computed: {atomic_files.readable(missing)}" if missing else "; all in the store")
        )
    heads = {head_folder(one).name for one in seen if one.parts.regime is finetune.finetune}
    if heads:
        trained = sum((seen[0].parts.cache / "heads" / name).is_dir() for name in heads)
        lines.append(
            f"head phases: {len(heads)} for {sum(one.parts.regime is finetune.finetune for one in seen)} jobs"
            + (f", {trained} of them in the head cache" if trained else "")
        )
    return lines, bool(missing)


def head_folder(one: PreparedJob) -> Path:
    return bottleneck.head_folder(one.parts, one.splits, head_run(one.parts.config))


def wants(one: PreparedJob) -> list[feature_cache.FeatureRequest]:
    """What a job reads from the store of activations."""
    parts, splits = one.parts, one.splits
    config = parts.config
    frozen = split_network(parts.backbone, 0, config.model.head.pooling)
    if parts.regime is bottleneck.bottleneck:
        return bottleneck.wants(parts, splits, frozen)
    if parts.regime is not finetune.finetune:
        return []
    boundary = split_network(parts.backbone, config.regime.unfrozen_blocks, config.model.head.pooling)
    trained = parts.head_file is not None or head_folder(one).is_dir()
    return finetune.wants(parts, splits, boundary, None if trained else frozen)


def tables_of(one: PreparedJob) -> list[feature_cache.FeatureTable]:
    return [feature_cache.FeatureTable(one.parts, want) for want in wants(one)]


def share(configs: Sequence[Mapping[str, Any]], answer: str) -> None:
    """Computes the activations that jobs read, those of one data set in one pass over its pictures."""
    with answering(answer):
        first = Config.model_validate(configs[0])
        runtime.apply(first.runtime)
        progress = Terminal(PlainConsole(quiet=first.progress == "none"))
        passes: dict[str, tuple[RunComponents, dict[str, feature_cache.FeatureRequest]]] = {}
        for one in see(configs):
            config = one.parts.config
            key = _key(
                one.parts.backbone.identity, one.splits.fingerprint, config.data.image_size,
                config.augmentation.model_dump(), config.regime.activations, config.model.head.pooling,
            )  # fmt: skip
            _, members = passes.setdefault(key, (one.parts, {}))
            members.update({feature_cache.FeatureTable(one.parts, want).name: want for want in wants(one)})
        for parts, members in passes.values():
            feature_cache.extract(parts, list(members.values()), progress)


def usual_seconds(config: Config, fingerprint: str, finished: Mapping[str, RunFacts]) -> float | None:
    """What runs like this one took before: the same regime, network and number of epochs, the same pictures."""
    alike = {
        "regime": config.regime.name, "model": config.model.name, "epochs": str(config.epochs),
        "batch_size": str(config.batch_size),
    }  # fmt: skip
    seconds = [
        one.metrics["total_seconds"]
        for one in finished.values()
        if one.tags.get("data_fingerprint") == fingerprint
        and all(one.params.get(name) == value for name, value in alike.items())
        and "total_seconds" in one.metrics
    ]
    return statistics.median(seconds) if seconds else None


def fetch(config: Mapping[str, Any], places: Sequence[tuple[str, str, str]], answer: str) -> None:
    """Brings what a summary reads of finished runs that are not on this machine: run id, identity, folder of each."""
    with answering(answer):
        uri = str(Config.model_validate(config).tracking.uri)
        for run_id, own, folder in places:
            for name in (run_directory.METRICS, "predictions_validation.csv", "predictions_test.csv"):
                try:
                    content = queries.read_file(uri, run_id, name, 2**30)
                except ConfigError:
                    if name == "predictions_test.csv":
                        continue  # only the winner's last runs have it
                    raise
                atomic_files.write_file(Path(folder) / name, content or b"")
            about = {"identity": own, "run_id": run_id, "status": "FINISHED"}
            atomic_files.write_file(Path(folder) / run_directory.FETCHED, json.dumps(about).encode())


def deleted(config: Mapping[str, Any], run_ids: Sequence[str], answer: str) -> None:
    """The answer's `deleted`: those of the MLflow runs that are not in the tracking store, or in its trash."""
    with answering(answer) as said:
        uri = str(Config.model_validate(config).tracking.uri)
        said["deleted"] = [run_id for run_id in run_ids if queries.is_deleted(uri, run_id)]


def conclude(folder: str, answer: str) -> None:
    """The summary of a sweep; see `summary_files.write_summary`."""
    with answering(answer) as said:
        said.update(summary_files.write_summary(Path(folder)))


def open_run(config: Mapping[str, Any], folder: str, before: str | None, answer: str) -> None:
    """Starts the sweep's own MLflow run, or goes on with it; the answer is its `run_id`."""
    with answering(answer) as said:
        said["run_id"] = tracked.start_sweep(
            Config.model_validate(config), Path(folder), getattr(multiprocessing.parent_process(), "pid", None), before
        )


def close_run(config: Mapping[str, Any], run_id: str, folder: str, metrics: Mapping[str, float], status: str,
              answer: str) -> None:  # fmt: skip
    """Tells the sweep's MLflow run what the sweep's folder holds, and ends it."""
    with answering(answer):
        try:
            tracked.end_sweep(Config.model_validate(config), run_id, Path(folder), metrics, status)
        except buffer.failures() as error:
            logging.getLogger(__name__).warning(
                "The sweep's conclusion is not in MLflow (%s). When the store is back: experiments summarize %s",
                redact_credentials(str(error))[:300], folder,
            )  # fmt: skip
            sys.stderr.flush()
