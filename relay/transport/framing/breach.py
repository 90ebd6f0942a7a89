"""What a client may not send over a WebSocket, and how its connection ends for it (RFC 6455)."""

from __future__ import annotations

from enum import Enum

from relay.protocol.endings import Ending


class Breach(Enum):
    """One way to break the protocol: what is wrong, and the ending it leads to."""

    RESERVED_BITS = ("a reserved bit is set", Ending.PROTOCOL_ERROR)
    UNKNOWN_OPCODE = ("the opcode is unknown", Ending.PROTOCOL_ERROR)
    UNMASKED = ("the frame is not masked", Ending.PROTOCOL_ERROR)
    LONG_CONTROL = ("a control frame is longer than 125 bytes", Ending.PROTOCOL_ERROR)
    FRAGMENTED_CONTROL = ("a control frame is fragmented", Ending.PROTOCOL_ERROR)
    NOTHING_TO_CONTINUE = ("a continuation follows no fragment", Ending.PROTOCOL_ERROR)
    UNFINISHED_MESSAGE = ("a message begins inside another", Ending.PROTOCOL_ERROR)
    OVERLONG_LENGTH = ("the length takes more bytes than it needs", Ending.PROTOCOL_ERROR)
    LENGTH_OVERFLOW = ("the length has 64 bits", Ending.PROTOCOL_ERROR)
    MESSAGE_TOO_BIG = ("the message is too big", Ending.MESSAGE_TOO_BIG)
    TEXT_NOT_UTF8 = ("a text message is not UTF-8", Ending.NOT_UTF8)
    CUT_CLOSE_CODE = ("a Close holds half a code", Ending.PROTOCOL_ERROR)
    FORBIDDEN_CLOSE_CODE = ("a Close holds a code that no endpoint sends", Ending.PROTOCOL_ERROR)
    CLOSE_REASON_NOT_UTF8 = ("the reason of a Close is not UTF-8", Ending.NOT_UTF8)

    @property
    def ending(self) -> Ending:
        return self.value[1]


class ProtocolViolation(Exception):
    """The peer broke the protocol."""

    def __init__(self, breach: Breach) -> None:
        super().__init__(breach.value[0])
        self.breach = breach
