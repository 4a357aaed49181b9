"""Relays notices: what one worker evicted, all others are told (design §5, C8).

The broadcast is an optimisation. A worker that is stuck, and does not read its socket, must not
hold up the others: its notice is dropped and counted, and it finds out by itself.
"""

from collections.abc import Iterable

import structlog

from td_runtime.workers import Worker
from td_worker.messages import NoticeSent, encode_frame

__all__ = ["NoticeRelay"]

log = structlog.get_logger()


class NoticeRelay:
    """Passes notices on; keeps no state but a count."""

    def __init__(self) -> None:
        self.dropped = 0
        """Notices that a worker was too far behind to be sent."""

    def relay(self, notice: NoticeSent, sender: Worker, workers: Iterable[Worker]) -> None:
        """Send *notice* to all of *workers* but its *sender*."""
        others = [worker for worker in workers if worker is not sender]
        frame = encode_frame(notice)
        behind = [each.number for each in others if not each.channel.try_send_frame(frame)]
        facts = {"slot": notice.slot, "credential_id": notice.credential_id}
        log.info(
            "notice.relayed",
            sender_worker=sender.number,
            receivers=len(others) - len(behind),
            **facts,
        )
        if behind:
            self.dropped += len(behind)
            log.warning("notice.dropped", workers=behind, **facts)
