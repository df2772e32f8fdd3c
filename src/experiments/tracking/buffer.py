"""Tracking buffer: the messages of a run for MLflow. An unavailable store neither stops the run nor loses data.

Messages that cannot be uploaded are kept in the run directory, for the next attempt or for `experiments sync`.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import ConfigError
from experiments.storage import atomic_files
from experiments.system.redaction import redact_credentials, redacted
from experiments.tracking import upload
from experiments.tracking.upload import MODEL, UNSENT, Kind, Message

if TYPE_CHECKING:
    import keras

SEND_EVERY = 1.0  # minimum seconds between two calls that send points of curves
SHARE = 0.1  # the largest share of the time that failing attempts, and points of curves on a slow server, may take
TYPED = (Kind.PARAMETERS, Kind.TAGS, Kind.DATA, Kind.END)  # may contain passwords that the user has typed
_log = logging.getLogger(__name__)


class TrackingBuffer:
    """The messages of a run that are still to be uploaded, in order.

    Args:
        run_id: the id of the MLflow run; None with tracking=none: messages are dropped.
        folder: the run directory; messages that an earlier process has left there are uploaded, too.
        keeps: whether messages are only written to the run directory, for `experiments sync`: a run is continued with
            tracking=none.
    """

    def __init__(self, run_id: str | None, folder: Path, *, keeps: bool = False) -> None:
        self.run_id, self.folder, self.keeps = run_id, folder, keeps
        self.waiting = read(folder) if run_id is not None else []
        self.model: keras.Model | None = None  # the model for the message MODEL
        self.reason = "tracking=none" if keeps else None  # why the last attempt failed
        self.next_try = time.monotonic()
        self.kept = 0.0  # the time when the file was last written

    def drop_outdated(self, replaced: str | None = None) -> None:
        """Drop buffered messages that are outdated, as a new or resumed run begins in this directory.

        These are the end of this run, artifacts and models of other runs, whose files are no longer in this directory,
        and all messages of the run `replaced`, which the store no longer has.
        """
        mine = [message for message in self.waiting if message.run_id == self.run_id and message.kind != Kind.END]
        others = [message for message in self.waiting if message.run_id not in (self.run_id, replaced)]
        self.waiting = [message for message in others if message.kind not in (Kind.ARTIFACTS, Kind.MODEL)] + mine
        if not any(message.kind == Kind.MODEL for message in mine):
            (self.folder / MODEL).unlink(missing_ok=True)

    def put(self, kind: Kind, content: Any) -> None:
        """Add a message; points of curves are added to the last message if that has some, too."""
        if self.run_id is None:
            return
        last = self.waiting[-1] if self.waiting else None
        if kind == Kind.METRICS and last and (last.run_id, last.kind) == (self.run_id, kind):
            last.content.extend(content)
        else:
            self.waiting.append(Message(self.run_id, kind, redacted(content) if kind in TYPED else content))

    def send(self, *, points: bool = False, last: bool = False) -> None:
        """Upload the buffered messages in order, and keep in the run directory those that cannot be uploaded.

        After a failed attempt, the next one is made only after ten times its duration, but the `last` one at once.
        If only points of curves were added, they are sent at most every SEND_EVERY seconds, and also only after ten
        times what those before have taken.
        """
        if self.run_id is None:
            return
        began = time.monotonic()
        if self.keeps or (not last and began < self.next_try and (points or self.reason)):
            if self.reason and (not points or began - self.kept > SEND_EVERY):
                self.keep()
            return
        reason = self._upload(last)
        ended = time.monotonic()
        self.next_try = ended + max(SEND_EVERY, (ended - began) / SHARE if reason or points else 0)
        if reason and not self.reason and not last:
            _log.warning(
                "MLflow cannot be reached (%s). Training continues; what could not be uploaded is buffered in %s",
                redact_credentials(reason), self.folder / UNSENT,
            )  # fmt: skip
        if self.reason and not reason:
            _log.warning("Everything that was buffered has been uploaded to MLflow")
        self.reason = reason
        self.keep()

    def _upload(self, last: bool) -> str | None:
        """Upload messages until the store is unavailable; return the reason why one of them could not be uploaded.

        A message is removed only after its upload, so that none is lost if a signal arrives meanwhile.
        """
        reason, is_available = None, True
        for message in list(self.waiting):
            # The run's end is uploaded even if other messages cannot be, for example without an artifact store.
            is_end = last and (message.run_id, message.kind) == (self.run_id, Kind.END)
            if not is_available and not is_end:
                continue
            try:
                upload.upload(self.folder, message, self.model)
            except Exception as error:  # MLflow, a database or a cloud client failed; none of them may stop the run.
                if is_available:
                    reason, is_available = str(error).partition("\n[SQL: ")[0][:500], not upload.is_unavailable(error)
            else:
                self.waiting = [other for other in self.waiting if other is not message]
        return reason

    def keep(self) -> None:
        """Write the buffered messages and model to the run directory, or delete the files if there are none."""
        file, aside = self.folder / MODEL, self.folder / f".aside-{MODEL}"
        if not any(message.kind == Kind.MODEL for message in self.waiting):
            file.unlink(missing_ok=True)
        elif self.model is not None and not file.exists():
            try:
                self.model.save(aside)
                aside.replace(file)
            finally:
                aside.unlink(missing_ok=True)
        if self.waiting:
            text = "".join(f"{json.dumps(message)}\n" for message in self.waiting)
            atomic_files.write_file(self.folder / UNSENT, text.encode())
        else:
            (self.folder / UNSENT).unlink(missing_ok=True)
        self.kept = time.monotonic()


def read(folder: Path) -> list[Message]:
    """Return the buffered messages of a run directory.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        lines = (folder / UNSENT).read_text(encoding="utf-8").splitlines()
        return [Message(run_id, Kind(kind), content) for run_id, kind, content in map(json.loads, lines)]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder / UNSENT}: is damaged ({error}). Move it away to go on without it") from None
