"""A file cut at keyframes, so that several processes can decode it, and what one of them does with its segments.

Cuts are made by packets alone, and every process reads all packets, which costs little beside decoding: so all cut
alike, and count time and choose what to decode as one process would that decodes the whole. Where pictures of an open
GOP are shown before the keyframe that they are sent after, it is decoded once more for them. Knows no other process:
parallel.py asks each in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from av.video.codeccontext import VideoCodecContext

from stream_sttm.sources.decoding.frame_selection import FrameSelection, Stamped
from stream_sttm.sources.decoding.gop import Mode, Policy
from stream_sttm.sources.decoding.mailbox import Mailbox
from stream_sttm.sources.decoding.protocol import Request, Share

SPAN = 4.0  # sampling periods that a segment lasts at least
MOST_SPAN = 10.0  # seconds that it need not be longer than
ROOM = 32 << 20  # bytes of pictures that wait in one process for their turn; a segment's should fit
MOST_READ = 64 << 20  # bytes of packets that are looked at for the end of the first segment


class Cuts:
    """Assigns each packet to its segment, one after the other."""

    def __init__(self, decode: str, fps: float) -> None:
        self._policy = Policy(decode, fps)
        self._span = min(SPAN / fps, MOST_SPAN)
        self._segment, self._began = 0, 0.0
        self._mode: Mode | None = None  # at the newest keyframe
        self._newest: int | None = (
            None  # presentation time, in ticks, of the last picture to be shown so far
        )
        self._is_timed = True

    def add(self, item: Stamped) -> int:
        """Return the number of the next packet's segment.

        None begins where the way of decoding changes, where time jumps, or after a packet without a time.
        """
        is_key, pts = item.packet.is_keyframe, item.packet.pts
        self._policy.add(item.t, is_key=is_key)
        if pts is None:
            self._is_timed = False
            return self._segment
        is_later = self._newest is not None and pts > self._newest
        self._newest = pts if is_later or self._newest is None else self._newest
        if is_key:
            is_same, self._mode = self._policy.mode is self._mode, self._policy.mode
            is_long = item.t - self._began >= self._span
            if is_same and is_later and is_long and self._is_timed:
                self._segment, self._began = self._segment + 1, item.t
        return self._segment


def numbered(packets: Iterator[Stamped], request: Request) -> Iterator[Stamped]:
    """Yield a file's packets with the numbers of their segments."""
    cuts = Cuts(request.decode, request.fps)
    for item in packets:
        item.segment = cuts.add(item)
        yield item


def begun(
    packets: Iterator[Stamped], request: Request, context: VideoCodecContext
) -> tuple[Iterator[Stamped], bool]:
    """Return the packets unchanged, and whether there is a second segment and the pictures of the first one fit."""
    read: deque[Stamped] = deque()
    size = 0
    for item in packets:
        read.append(item)
        size += item.packet.size
        if item.segment or size > MOST_READ:
            break
    is_worth = bool(read) and bool(read[-1].segment)
    if is_worth:
        frames = min(len(read), 1 + (read[-1].t - read[0].t) * request.fps)
        scale = min(1.0, request.max_side / max(context.width, context.height, 1))
        is_worth = frames * 3 * context.width * context.height * scale**2 <= ROOM
    return _joined(read, packets), is_worth


def _joined(read: deque[Stamped], rest: Iterator[Stamped]) -> Iterator[Stamped]:
    """Yield what was read, released one by one, and the rest."""
    while read:
        yield read.popleft()
    yield from rest


class Part:
    """One process's share: all packets of a file in, the pictures of every `count`th segment into its mailbox."""

    def __init__(self, share: Share, selection: FrameSelection, mailbox: Mailbox) -> None:
        self._share, self._selection, self._mailbox = share, selection, mailbox
        self._segment = 0
        self._key: Stamped | None = (
            None  # of this segment, while what follows may be shown before it
        )
        self._tail: list[Stamped] = []  # of the segment after ours, what ours needs to be complete

    def add(self, item: Stamped) -> None:
        """Take the next packet. Raises what decoding raises."""
        is_first = item.segment != self._segment
        if is_first:
            self._segment, self._key = item.segment, item
        leads = not is_first and self._leads(item)
        if self._tail and not leads:
            self._leave()
        if self._is_ours(item.segment):
            item.is_ours = not leads
            self._selection.add(item, begins=is_first)
            return
        self._selection.note(item)
        if self._tail:
            self._tail.append(item)
        elif is_first and self._is_ours(item.segment - 1):
            self._tail = [item]
            if self._selection.is_done:
                self._leave()

    def finish(self) -> None:
        """End the file."""
        if self._tail:
            self._leave()
        elif self._is_ours(self._segment):
            self._selection.finish()

    def _leave(self) -> None:
        """End our segment: with what of the next is shown in it, if there is such, and its keyframe for that."""
        tail, self._tail = self._tail, []
        tail[0].is_ours = False
        self._selection.leave(tail if len(tail) > 1 else ())
        self._mailbox.mark(turn=True)

    def _is_ours(self, segment: int) -> bool:
        return segment % self._share.count == self._share.index

    def _leads(self, item: Stamped) -> bool:
        """Whether a packet that is sent after its segment's keyframe is shown before it."""
        if self._key is not None:
            key, pts = self._key.packet.pts, item.packet.pts
            if key is not None and pts is not None and pts < key:
                return True
            self._key = None
        return False
