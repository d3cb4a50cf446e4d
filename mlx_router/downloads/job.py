"""The download of one model, from its name to its folder. It blocks, and has a thread of its own.

::

    model directory/
        org/name/                           there once it is complete, by one rename
        .downloads/org--name/COMMIT/        until then; what is there is not fetched again
        .downloads/org--name.lock           held by the process that fetches it

The folder of a model thus never holds half of it, and an interrupted download is no model.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlx_router.catalog.discovery import discover
from mlx_router.catalog.preview import problem_before_weights
from mlx_router.domain import GIB
from mlx_router.downloads import hub
from mlx_router.downloads.selection import RepoFile, needed
from mlx_router.downloads.transfer import Stopped, Transfer
from mlx_router.errors import InsufficientStorage, ModelCorrupt, PermissionDenied, Unavailable

log = logging.getLogger(__name__)

KEEP_FREE_BYTES = GIB  # of the disk
MAX_FILES = 500  # the largest models have some 200
MAX_OTHER_BYTES = GIB // 2  # of all files but the weights; most have less than 50 MB
_FILES_AT_ONCE = 4
_LOG_SHARE = 0.1  # a line in the log for every tenth,
_LOG_SECONDS = (10.0, 60.0)  # with so many seconds at least and at most between two of them


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for one model's download. ``folder`` is the model directory; ``check_memory``
    raises if weights of so many bytes can never be loaded."""

    allowed: bool
    folder: Path
    trust_remote_code: bool
    check_memory: Callable[[int], None]


class Job:
    """``run`` it on a thread; all else is for any thread. ``turns`` limits how many fetch their
    weights at the same time; ``reserved`` says how many bytes the other jobs will still write.
    ``revision`` is a branch, tag or commit of the repository; None: main."""

    def __init__(
        self,
        name: str,
        rules: Rules,
        turns: threading.Semaphore,
        reserved: Callable[[Job], int],
        revision: str | None = None,
    ) -> None:
        self.name = name
        self.listed = False  # whether the Hub has said what there is
        self._revision = revision
        self._rules = rules
        self._turns = turns
        self._reserved = reserved
        self._stop = threading.Event()
        self._transfers: Sequence[Transfer] = ()
        self._waits_for = ""
        self._place = rules.folder / ".downloads" / name.replace("/", "--")

    # --- for whoever waits ------------------------------------------------------------------

    @property
    def under_way(self) -> bool:
        """Whether it is known what there is to fetch."""
        return bool(self._transfers or self._waits_for)

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(transfer.file.size for transfer in self._transfers)

    @property
    def done(self) -> int:
        """Bytes that are here."""
        return sum(transfer.done for transfer in self._transfers)

    @property
    def text(self) -> str:
        """How far it is, in a few words."""
        if self._waits_for:
            return f"downloading {self.name}: waiting for {self._waits_for}"
        total = self.total
        return f"downloading {self.name} {100 * self.done // max(total, 1)} % of {_size(total)}"

    def stop(self) -> None:
        """Let it end soon."""
        self._stop.set()

    # --- the work ---------------------------------------------------------------------------

    def plan(self) -> Sequence[Transfer]:
        """What there is to fetch, after all checks that need no file; nothing is written. Raises
        as :meth:`run`."""
        source, files = self._listed()
        self._target()
        staging = self._place / source.commit
        self._transfers = [Transfer(source, f, staging / f.name, self._stop) for f in files]
        self._check_space()
        return self._transfers

    def run(self) -> None:
        """Returns when the model is in its folder. Raises RouterError, Stopped, and what
        :func:`mlx_router.downloads.hub.explain` explains."""
        source, files = self._listed()
        target = self._target()
        with self._alone():
            if target.is_dir() and os.listdir(target):
                return  # another process has fetched it meanwhile
            staging = self._staging(source.commit)
            self._transfers = [Transfer(source, f, staging / f.name, self._stop) for f in files]
            self._check_space()
            log.info(
                "downloading %s: %d files, %s, of which %s are here already",
                *(self.name, len(files), _size(self.total), _size(self.done)),
            )
            begun, before = time.monotonic(), self.done
            self._fetch([t for t in self._transfers if not t.file.is_weights])
            self._check_model(staging)
            with self._turn():
                self._fetch([t for t in self._transfers if t.file.is_weights])
            target.parent.mkdir(exist_ok=True)
            os.rename(staging, target)
            shutil.rmtree(self._place, ignore_errors=True)
        seconds, fetched = time.monotonic() - begun, self.total - before
        log.info(
            "downloaded %s: %s in %.1f s (%s a second)",
            *(self.name, _size(fetched), seconds, _size(int(fetched / max(seconds, 0.001)))),
        )

    def _listed(self) -> tuple[hub.Repository, list[RepoFile]]:
        """The repository, and the files that are needed; it may be downloaded."""
        source = hub.repository(self.name, self._revision)
        self.listed = True
        files = needed(source.files, with_code=self._rules.trust_remote_code)
        self._check_format(source, files)
        self._check_extent(files)
        self._rules.check_memory(sum(file.size for file in files if file.is_weights))
        return source, files

    def _check_format(self, source: hub.Repository, files: list[RepoFile]) -> None:
        if any(file.is_weights for file in files):
            return
        found = {Path(file.name).suffix for file in source.files}
        kinds = [kind for kind in (".gguf", ".bin", ".pth", ".pt") if kind in found]
        has = f"only {', '.join(kinds)} files" if kinds else "none"
        raise ModelCorrupt(
            f"{self.name} has no weights in safetensors on the Hugging Face Hub ({has}), which MLX "
            "needs: ask for a conversion, as mlx-community has them.",
            param="model",
        )

    def _check_extent(self, files: list[RepoFile]) -> None:
        """Whether these may be the files of one model, not what fills a disk beside a small one."""
        others = sum(file.size for file in files if not file.is_weights)
        if len(files) <= MAX_FILES and others <= MAX_OTHER_BYTES:
            return
        raise ModelCorrupt(
            f"{self.name} is not downloaded: it has {len(files):,} files, of which those that are "
            f"no weights have {_size(others)}; a model may have {MAX_FILES} files, and "
            f"{_size(MAX_OTHER_BYTES)} that are no weights. Download it by hand if you trust it.",
            param="model",
        )

    def _target(self) -> Path:
        """The model's folder, which must be where its name says, and be found there."""
        root = self._rules.folder
        target = root / self.name
        if os.path.realpath(target) != os.path.join(os.path.realpath(root), self.name):
            raise PermissionDenied(
                f"{self.name} is not downloaded: a link in the model directory leads its folder to "
                "another place. Remove the link, or download the model by hand.",
                param="model",
            )
        if target.is_dir() and os.listdir(target) and not (target / "config.json").exists():
            raise ModelCorrupt(
                f"{self.name} is not downloaded: the model directory has a folder of that name, "
                "without a model in it. Remove the folder, then ask again.",
                param="model",
            )
        if any(location.path == target.parent for location in discover([root]).locations):
            org = target.parent.name
            raise ModelCorrupt(
                f"{self.name} is not downloaded: the folder {org} in the model directory is itself "
                f"a model, and models inside it are not found. Rename {org}, then ask again.",
                param="model",
            )
        return target

    def _staging(self, commit: str) -> Path:
        """Where the files go first. What was fetched of another commit is of no use any more."""
        staging = self._place / commit
        staging.mkdir(parents=True, exist_ok=True)
        for other in self._place.iterdir():
            if other.name != commit:
                shutil.rmtree(other, ignore_errors=True)
        return staging

    def _check_space(self) -> None:
        """Whether all of it fits, beside what the other jobs have still to write."""
        need = self.total - self.done
        root = self._rules.folder.absolute()
        there = next(folder for folder in (root, *root.parents) if os.path.exists(folder))
        free = shutil.disk_usage(there).free - self._reserved(self)
        if need + KEEP_FREE_BYTES <= free:
            return
        raise InsufficientStorage(
            f"{self.name} is not downloaded: it needs {_size(need)} and there is room for "
            f"{_size(max(free - KEEP_FREE_BYTES, 0))} in the model directory "
            f"{self._rules.folder.name} ({_size(KEEP_FREE_BYTES)} of the disk stay free). Make "
            "room, then ask again.",
            param="model",
            retry_after=60,
        )

    def _check_model(self, staging: Path) -> None:
        """Whether it is worth fetching the weights."""
        trusted = self._rules.trust_remote_code
        problem = problem_before_weights(staging, self.name, trust_remote_code=trusted)
        if problem is not None:
            shutil.rmtree(self._place, ignore_errors=True)
            raise ModelCorrupt(
                f"The model {self.name} cannot be used: {problem}. It was not downloaded.",
                param="model",
            )

    def _fetch(self, transfers: Sequence[Transfer]) -> None:
        """Several at once, on threads that a process may leave behind when it ends."""
        work = queue.SimpleQueue[Transfer]()
        results = queue.SimpleQueue[Exception | None]()
        for transfer in transfers:
            work.put(transfer)

        def fetch() -> None:
            while not self._stop.is_set():
                try:
                    work.get_nowait().run()
                except queue.Empty:
                    return
                except Exception as error:
                    results.put(error)
                    return
                results.put(None)

        threads: list[threading.Thread] = []
        try:
            for _ in range(min(_FILES_AT_ONCE, len(transfers))):
                thread = threading.Thread(target=fetch, name="download-file", daemon=True)
                start(thread, self.name)
                threads.append(thread)
            self._await(results, len(transfers))
        except BaseException:
            self._stop.set()
            raise
        finally:  # nobody else may write to these files as long as one of them does
            for thread in threads:
                thread.join()

    def _await(self, results: queue.SimpleQueue[Exception | None], missing: int) -> None:
        progress = _ProgressLog(self)
        while missing:
            try:
                error = results.get(timeout=0.5)
            except queue.Empty:
                self._check_stop()
                progress.write()
                continue
            if error is not None:
                raise error
            missing -= 1

    # --- waiting ----------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Without another process that fetches the same."""
        lock = self._place.with_name(self._place.name + ".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(hub.utils().WeakFileLock(lock, timeout=0.5))
                    break
                except TimeoutError:
                    self._waits_for = "another process that downloads it"
                    self._check_stop()
            self._waits_for = ""
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        while not self._turns.acquire(timeout=0.5):
            self._waits_for = "other downloads"
            self._check_stop()
        self._waits_for = ""
        try:
            yield
        finally:
            self._turns.release()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped


class _ProgressLog:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._last = (time.monotonic(), job.done)

    def write(self) -> None:
        """Write a line if it is time for one."""
        now, done = time.monotonic(), self._job.done
        seconds, fetched = now - self._last[0], done - self._last[1]
        least, most = _LOG_SECONDS
        if seconds < least or (seconds < most and fetched < _LOG_SHARE * self._job.total):
            return
        self._last = (now, done)
        log.info("%s, %s a second", self._job.text, _size(int(fetched / seconds)))


def start(thread: threading.Thread, name: str) -> None:
    """Start a thread of a model's download; raises Unavailable if the system has none to give."""
    try:
        thread.start()
    except RuntimeError as error:
        raise Unavailable(
            f"{name} could not be downloaded: the system gives this server no more threads. Ask "
            "again later.",
            param="model",
            retry_after=5,
        ) from error


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GB" if size >= GIB else f"{size / 2**20:.1f} MB"
