"""A log of the numbered frames and alerts that a viewer gets, checked while it is written."""

from __future__ import annotations

from attrs import define, field

from relay.client import Alert, Frame, RelayClient


@define(eq=False)
class EventLog:
    """Checks that frames and alerts come in order, each once, and that no alert is missing.

    The first frame of an epoch holds 1, the first alert says 1, and so on.
    """

    frames: int = 0
    missed: int = 0
    alerts: list[Alert] = field(factory=list)
    _epoch: int = 0
    _seq: int = 0

    async def record(self, client: RelayClient) -> None:
        async for event in client:
            if isinstance(event, Frame):
                self._record_frame(event)
            elif isinstance(event, Alert):
                self._record_alert(event)

    def _record_frame(self, frame: Frame) -> None:
        if frame.epoch != self._epoch:
            self._epoch, self._seq = frame.epoch, 0
        assert frame.seq > self._seq, f"frame {frame.seq} after {self._seq}"
        assert not self._seq or frame.missed == frame.seq - self._seq - 1
        assert frame.data == b"%d" % frame.seq
        self._seq = frame.seq
        self.frames += 1
        self.missed += frame.missed

    def _record_alert(self, alert: Alert) -> None:
        if self.alerts:
            before = self.alerts[-1]
            assert alert.alert_id > before.alert_id
            assert int(alert.message) == int(before.message) + 1, "one is missing, or twice"
        self.alerts.append(alert)
