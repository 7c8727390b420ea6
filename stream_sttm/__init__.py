"""Live video that answers questions, from one rolling memory per stream."""

from stream_sttm.errors import StreamSTTMError
from stream_sttm.types import Answer, Clip, Frame, Question, StreamState, StreamStatus

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Clip",
    "Frame",
    "Question",
    "StreamSTTMError",
    "StreamState",
    "StreamStatus",
    "__version__",
]
