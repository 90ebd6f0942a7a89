"""What the link from a producer to the relay carries, and whether there is room on it."""

from __future__ import annotations

from attrs import define, field

from relay.transport.pacing import MAX_QUEUE_SECONDS, Pacer


@define(eq=False)
class Uplink:
    """Measures the link of one connection by what the relay says has come: `received` messages.

    All times are seconds of one clock.
    """

    _pacer: Pacer = field(factory=Pacer)
    """Knows a frame by its number on the connection, and a question by a negative one."""
    _frames: int = 0
    _questions: int = 0

    @property
    def bytes_under_way(self) -> int:
        """Bytes of frames that have not come yet, as far as is known."""
        return self._pacer.bytes_under_way

    def bandwidth(self, now: float) -> float | None:
        """Bytes a second that the link carries; None while that is not known."""
        return self._pacer.bandwidth(now)

    def has_room(self, now: float, queue_seconds: float = MAX_QUEUE_SECONDS) -> bool:
        """Whether a frame that is sent now would wait no longer than this on its way."""
        return self._pacer.may_send(now, queue_seconds)

    def frame_sent(self, size: int, now: float) -> None:
        self._frames += 1
        self._pacer.frame_sent(self._frames, size, now)

    def frames_received(self, count: int, now: float) -> None:
        """Note that so many of the connection's frames have come."""
        if count > 0:
            self._pacer.answer(count, now)

    def wants_question(self, now: float) -> bool:
        """Whether to ask the relay something ahead of the next frame: it is likely to wait behind
        nothing, so that the answer tells the round trip."""
        return self._pacer.wants_ping(now)

    def question_sent(self, now: float) -> int:
        """Note that something was asked; returns the number of the question."""
        self._questions += 1
        self._pacer.ping_sent(-self._questions, now)
        return self._questions

    def question_answered(self, number: int, now: float) -> None:
        self._pacer.answer(-number, now)
