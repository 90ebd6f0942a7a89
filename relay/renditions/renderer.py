"""Makes smaller pictures in a worker process, one picture at a time.

The worker is started for the first picture and ended when none has come for a while. It is a
supervised task. A picture that kills the worker costs that picture, and its owner the renditions
for some minutes; pictures of others that wait are made by the next worker.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import structlog
import trio
from attrs import define, field

from relay.concurrency.backoff import Backoff
from relay.concurrency.progress import Progress
from relay.concurrency.wakeup import Wakeup
from relay.metrics import Metrics, RenditionOutcome
from relay.renditions.cpu_budget import CpuBudget
from relay.renditions.jpeg_header import (
    Buffer,
    Size,
    read_orientation,
    read_renderable_size,
    with_orientation,
)
from relay.renditions.sizes import plan_sizes
from relay.renditions.worker import PICTURE_CPU_SECONDS
from relay.renditions.worker_process import (
    Answer,
    LibraryUnusable,
    RelayStalled,
    RenditionWorker,
    WorkerGone,
    WorkerTooSlow,
    open_worker,
)

PICTURE_TIMEOUT = 1.0
"""Seconds for one picture, whether or not the machine gives the worker any CPU time. What the
worker may use of that is `PICTURE_CPU_SECONDS`, which the kernel watches."""
MAX_TIMEOUT_DELAY = 0.2
"""Seconds after the end of that time: if relay notices only later, it stood still itself, and no
picture is to blame."""
TURN_TIMEOUT = 2.0
"""Seconds in which a picture's turn has to come; later it is too old for a live view."""
MAX_WAITING_PICTURES, MAX_WAITING_PICTURES_OF_OWNER = 8, 2
"""Pictures that wait for their turn, in all and of one user."""
MAX_PICTURE_BYTES = 16 << 20
OWNER_BAN = 600.0
"""Seconds without renditions for the owner of a picture that killed or crashed a worker."""
IDLE_TIMEOUT = 60.0
"""Seconds without a picture after which the worker ends: it takes 26 MiB."""
RETIREMENT_CPU_SECONDS = 1000.0
"""CPU seconds after which a worker is replaced, before the kernel's limit ends it."""
WORKER_BACKOFF = 0.1
MAX_WORKER_BACKOFF = 10.0
WORKER_STABLE_AFTER = 30.0
"""Seconds of life of a worker after which the next failure counts as the first."""

log = structlog.get_logger()


@define(eq=False, repr=False)
class _Job:
    """A picture to be made smaller."""

    owner_id: str
    picture: Buffer
    size: Size
    sizes: Sequence[Size]
    begun: trio.Event = field(factory=trio.Event)
    done: trio.Event = field(factory=trio.Event)
    outcome: RenditionOutcome = RenditionOutcome.CANCELLED
    made: Sequence[bytes] = ()


@define(eq=False, repr=False)
class Renderer:
    """Makes smaller JPEG pictures, for all streams."""

    _metrics: Metrics
    _command: Sequence[str] | None
    """The command line of a worker; None where there are no renditions."""
    _cores: float
    progress: Progress = field(factory=Progress)
    _budget: CpuBudget = field(init=False)
    _waiting: deque[_Job] = field(factory=deque)
    _wakeup: Wakeup = field(factory=Wakeup)
    _resting_until: float = -math.inf
    """When the next worker is started, by Trio's clock."""
    _banned_until: dict[str, float] = field(factory=dict)
    """By owner, by Trio's clock."""

    def __attrs_post_init__(self) -> None:
        self._budget = CpuBudget(self._cores)

    @property
    def available(self) -> bool:
        """Whether renditions are on and their library is there."""
        return self._command is not None and self._cores > 0

    def can_render(self, owner_id: str, now: float) -> bool:
        """Whether a picture of this owner would be taken now, by Trio's clock."""
        return self._refusal(owner_id, now) is None

    async def render(
        self, owner_id: str, picture: Buffer, widths: Sequence[int]
    ) -> Mapping[int, bytes]:
        """Smaller JPEG pictures, by the widths wanted: largest first, all below the picture's.

        A picture has the nearest width that a decoder makes by itself (`plan_sizes`), and the
        proportions of the original. All are there, or none: where the picture is refused, cannot
        be decoded, or its turn does not come.
        """
        job = await self._run_job(owner_id, picture, widths)
        if not job:
            return {}
        orientation = read_orientation(picture)
        pictures = (with_orientation(made, orientation) for made in job)
        return dict(zip(widths, pictures, strict=True))

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> NoReturn:
        """Keep a worker while pictures come, until cancelled."""
        task_status.started()
        backoff = Backoff(WORKER_BACKOFF, MAX_WORKER_BACKOFF)
        while True:
            await self._wait_for_job()
            began = trio.current_time()
            try:
                await self._use_worker()
            except LibraryUnusable:
                break
            except (WorkerGone, OSError) as problem:
                now = trio.current_time()
                if now - began >= WORKER_STABLE_AFTER:
                    backoff.reset()
                pause = backoff.next()
                self._resting_until = now + pause
                log.warning("the worker of renditions ended", why=str(problem), restarts_in=pause)
                await trio.sleep(pause)
            else:
                backoff.reset()
        log.error("renditions are off: the worker process cannot import simplejpeg")
        self._command = None
        await trio.sleep_forever()
        raise AssertionError("forever does not end")

    def _refusal(self, owner_id: str, now: float) -> RenditionOutcome | None:
        """Why a picture would not be taken now."""
        if not self.available or now < self._resting_until:
            return RenditionOutcome.UNAVAILABLE
        if self._is_banned(owner_id, now):
            return RenditionOutcome.BANNED
        waiting_of_owner = sum(job.owner_id == owner_id for job in self._waiting)
        if (
            len(self._waiting) >= MAX_WAITING_PICTURES
            or waiting_of_owner >= MAX_WAITING_PICTURES_OF_OWNER
            or not self._budget.has_room(now, owner_id)
        ):
            return RenditionOutcome.OVER_BUDGET
        return None

    async def _run_job(
        self, owner_id: str, picture: Buffer, widths: Sequence[int]
    ) -> Sequence[bytes]:
        """The pictures made, in the order of the widths."""
        outcome = self._refusal(owner_id, trio.current_time())
        size = None if outcome else read_renderable_size(picture)
        if size is None or not widths or len(picture) > MAX_PICTURE_BYTES:
            self._metrics.renditions[outcome or RenditionOutcome.UNSUITABLE] += 1
            await trio.lowlevel.checkpoint()
            return ()
        job = _Job(owner_id, picture, size, plan_sizes(size, widths))
        self._waiting.append(job)
        self._wakeup.set()
        try:
            with trio.move_on_after(TURN_TIMEOUT) as turn:
                await job.begun.wait()
            if turn.cancelled_caught:
                job.outcome = RenditionOutcome.UNAVAILABLE
            else:
                await job.done.wait()
        finally:
            if not job.begun.is_set():
                self._waiting.remove(job)
            self._metrics.renditions[job.outcome] += 1
        return job.made

    async def _wait_for_job(self) -> None:
        while not self._waiting:
            await self._wakeup.wait()

    async def _use_worker(self) -> None:
        """Start a worker and give it pictures, until none comes or it is to be replaced."""
        assert self._command is not None
        async with open_worker(self._command) as worker:
            log.debug("the worker of renditions is ready", isolated=worker.isolated)
            while worker.cpu_seconds < RETIREMENT_CPU_SECONDS:
                with trio.move_on_after(IDLE_TIMEOUT) as idle:
                    await self._wait_for_job()
                if idle.cancelled_caught:
                    return
                if worker.has_ended:  # while it was idle: no picture is to blame
                    raise WorkerGone("it ended while it was idle")
                await self._do_next_job(worker)

    async def _do_next_job(self, worker: RenditionWorker) -> None:
        job = self._waiting.popleft()
        job.begun.set()
        try:
            if self._is_banned(job.owner_id, trio.current_time()):
                job.outcome = RenditionOutcome.BANNED
                return
            began = trio.current_time()
            with self.progress, self._blaming(job):
                answer = await _ask(worker, job)
            now = trio.current_time()
            self._budget.spend(now, answer.cpu_seconds, job.owner_id)
            job.made = answer.pictures
            job.outcome = RenditionOutcome.UNDECODABLE
            if job.made:
                job.outcome = RenditionOutcome.MADE
                self._metrics.rendition_time.observe(now - began)
        finally:
            job.done.set()

    @contextmanager
    def _blaming(self, job: _Job) -> Iterator[None]:
        """Ban the owner of the picture when the worker fails at it."""
        try:
            yield
        except RelayStalled:
            job.outcome = RenditionOutcome.UNAVAILABLE
            raise
        except WorkerGone as problem:
            too_slow = isinstance(problem, WorkerTooSlow)
            job.outcome = RenditionOutcome.KILLED if too_slow else RenditionOutcome.CRASHED
            now = trio.current_time()
            self._budget.spend(now, PICTURE_CPU_SECONDS, job.owner_id)
            self._ban(job.owner_id, now)
            log.warning(
                "no renditions for a user: a picture made the worker fail",
                user=job.owner_id,
                why=str(problem),
                seconds=OWNER_BAN,
            )
            raise

    def _ban(self, owner_id: str, now: float) -> None:
        expired = [owner for owner, until in self._banned_until.items() if until <= now]
        for owner in expired:
            del self._banned_until[owner]
        self._banned_until[owner_id] = now + OWNER_BAN

    def _is_banned(self, owner_id: str, now: float) -> bool:
        return now < self._banned_until.get(owner_id, -math.inf)


async def _ask(worker: RenditionWorker, job: _Job) -> Answer:
    """Have the worker make the pictures; `WorkerGone`."""
    with trio.move_on_after(PICTURE_TIMEOUT) as scope:
        return await worker.render(job.picture, job.size, job.sizes)
    if trio.current_time() > scope.deadline + MAX_TIMEOUT_DELAY:
        raise RelayStalled("relay stood still while it made a picture")
    raise WorkerTooSlow(f"it took longer than {PICTURE_TIMEOUT:g} s")
