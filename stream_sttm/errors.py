"""Every error the project raises on purpose.

    StreamSTTMError
    ├── ConfigError              the configuration, an option or a name is wrong
    ├── SourceError              a stream can't be read
    │   ├── SourceUnavailable    nobody there, cut off, timed out: worth trying again
    │   ├── SourceDenied         wrong password or not allowed: tried again, but slowly
    │   └── NotVideo             something answers that is no video
    ├── PublishError             a publisher of a stream is refused
    │   ├── NotAnOffer           what was sent is no usable SDP offer of video
    │   ├── AlreadyPublished     somebody else publishes it now
    │   └── TooManyOffers        asked too often: worth trying again later
    ├── ModelError               the model can't be used
    │   ├── UnsupportedModel     a family or layout that this version can't run
    │   ├── ModelUnavailable     its hub can't be reached: worth trying again
    │   ├── OutOfMemory          the device has no room left
    │   └── DeviceLost           the device does nothing more for this process
    ├── QuestionError            a question gets no answer
    │   ├── UnknownStream        no stream of that name
    │   ├── QuestionRejected     empty, too long, or no room for it
    │   │   └── TooManyQuestions no room for one more now: worth asking again
    │   ├── AnswerUnfinished     the answer did not come to its end within its tokens
    │   ├── AnswerFailed         the answer could not be made, of this question alone
    │   │   └── NotFinite        the model gave no numbers: its memory starts anew
    │   ├── NoVideoYet           the stream has shown no frame so far
    │   ├── QuestionExpired      not answered in time
    │   └── Stopping             the service is about to end
    ├── ControlError             the service can't do what was requested
    │   ├── UnknownQuery         no standing query of that name
    │   ├── UnknownEvent         no event of that id, or no picture of it any more
    │   ├── NotPossible          its configuration or state forbids it
    │   ├── TooManyTests         sources are being tried out already: worth trying again
    │   ├── TooManyReaders       as many as may read along do so already: worth trying again
    │   └── NotReady             it has not started yet: worth trying again
    ├── NotASighting             a message that should be Frigate's is not
    ├── StateError               a saved memory can't be written, read or used
    ├── StoreError               the answer store can't be read or written
    └── SinkError                an answer could not be handed over: worth trying again
        ├── SinkHungUp           the other side hung up while this was sent: tried again, but watched
        └── SinkRefused          this one will never be taken: given up

A message is one line: what, where, what to do. Third-party exceptions are mapped in the file that imports the
library. An error is never returned as an answer.
"""


class StreamSTTMError(Exception):
    """Root of the tree. The text may be shown to a user and holds no secret.

    `exit_status` is that of a process which it ends: 2 where another start can't help, else 1.
    """

    exit_status = 1


class ConfigError(StreamSTTMError):
    """The configuration, an option or a name is wrong."""

    exit_status = 2


class SourceError(StreamSTTMError):
    """A stream can't be read."""


class SourceUnavailable(SourceError):  # noqa: N818 - reads better where it is raised
    """Nobody there, cut off or timed out: worth trying again."""


class SourceDenied(SourceError):  # noqa: N818
    """Wrong password or not allowed: tried again, but slowly."""


class NotVideo(SourceError):  # noqa: N818
    """Something answers that is no video."""


class PublishError(StreamSTTMError):
    """A publisher of a stream is refused."""


class NotAnOffer(PublishError):  # noqa: N818
    """What was sent is no usable SDP offer of video."""


class AlreadyPublished(PublishError):  # noqa: N818
    """Somebody else publishes the stream now."""


class TooManyOffers(PublishError):  # noqa: N818
    """Asked too often: worth trying again later."""


class ModelError(StreamSTTMError):
    """The model can't be used."""

    exit_status = 2


class UnsupportedModel(ModelError):  # noqa: N818
    """A family or layout that this version can't run."""


class ModelUnavailable(ModelError):  # noqa: N818
    """Its hub can't be reached."""

    exit_status = 1


class OutOfMemory(ModelError):  # noqa: N818
    """The device has no room left."""


class DeviceLost(ModelError):  # noqa: N818
    """The device does nothing more for this process: only a new process can use it."""

    exit_status = 1


class QuestionError(StreamSTTMError):
    """A question gets no answer."""


class UnknownStream(QuestionError):  # noqa: N818
    """No stream of that name."""


class QuestionRejected(QuestionError):  # noqa: N818
    """Empty, too long, or no room for it."""


class TooManyQuestions(QuestionRejected):
    """No room for one more now: worth asking again."""


class NoVideoYet(QuestionError):  # noqa: N818
    """The stream has shown no frame so far."""


class AnswerUnfinished(QuestionError):  # noqa: N818
    """The answer did not come to its end within its tokens."""


class AnswerFailed(QuestionError):  # noqa: N818
    """The answer could not be made, of this question alone."""


class NotFinite(AnswerFailed):
    """The model gave no numbers: the stream's memory starts anew."""

    def __init__(self) -> None:
        super().__init__(
            "the model's output is not a number (NaN); the stream's memory starts anew, ask again"
        )


class QuestionExpired(QuestionError):  # noqa: N818
    """Not answered in time."""


class Stopping(QuestionError):  # noqa: N818
    """The service is stopping and answers nothing any more."""


class ControlError(StreamSTTMError):
    """The service can't do what was requested."""


class UnknownQuery(ControlError):  # noqa: N818
    """No standing query of that name."""


class UnknownEvent(ControlError):  # noqa: N818
    """No event of that id, or no picture of it any more."""


class NotPossible(ControlError):  # noqa: N818
    """The configuration or state of what is meant forbids it."""


class TooManyTests(ControlError):  # noqa: N818
    """Sources are being tried out already: worth trying again."""


class TooManyReaders(ControlError):  # noqa: N818
    """As many as may read live events do so already: worth trying again."""


class NotReady(ControlError):  # noqa: N818
    """The service has not started yet: worth trying again."""


class NotASighting(StreamSTTMError):  # noqa: N818
    """A message that should be Frigate's is not."""


class StateError(StreamSTTMError):
    """A saved memory can't be written, read or used."""


class StoreError(StreamSTTMError):
    """The answer store can't be read or written."""


class SinkError(StreamSTTMError):
    """An answer could not be handed over: worth trying again."""


class SinkHungUp(SinkError):  # noqa: N818
    """The other side hung up while this was sent: tried again, but watched."""


class SinkRefused(SinkError):  # noqa: N818
    """The other side will never take this answer: given up, not retried."""
