"""Storage that is away for a while, and what its errors mean."""

from __future__ import annotations

import pytest
from pyarrow import ArrowException, ArrowInvalid

from sfss_ray.storage import object_errors
from sfss_ray.storage.object_errors import meaning_of, patiently

_BUSY = (
    "When listing objects under key 'a': AWS Error SLOW_DOWN during ListObjectsV2 operation: Please"
)
_NO_BUCKET = "AWS Error NO_SUCH_BUCKET during ListObjectsV2: it does not exist (Request ID: abc)"


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses between attempts, which take no time."""
    clock, pauses = [0.0], []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(object_errors.time, "sleep", sleep)
    monkeypatch.setattr(object_errors.time, "monotonic", lambda: clock[0])
    return pauses


def test_an_operation_is_repeated_until_the_storage_answers(pauses):
    answers = iter([OSError(_BUSY), OSError("HTTP status 503"), "done"])

    def work() -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert patiently(work) == "done"
    assert pauses == [0.5, 1.0]


def test_an_error_of_no_kind_is_one_of_the_storage():
    def work():
        raise ArrowException("Unknown error: AuthenticationExceptionE: Failed to get token\nSee")

    with pytest.raises(OSError, match="Unknown error") as error:
        patiently(work)
    assert meaning_of(error.value) == "this machine has no credentials for it"


def test_an_error_in_the_data_keeps_its_kind():
    def work():
        raise ArrowInvalid("no Parquet file")

    with pytest.raises(ArrowInvalid):
        patiently(work)


def test_the_patience_has_an_end(pauses):
    def work():
        raise OSError(_BUSY)

    with pytest.raises(OSError, match="SLOW_DOWN") as error:
        patiently(work)
    assert 50 < sum(pauses) <= object_errors.RETRY_SECONDS
    assert max(pauses) == 8.0
    assert meaning_of(error.value) == "it did not answer for 60 s"


@pytest.mark.parametrize("text", [_NO_BUCKET, "AWS Error ACCESS_DENIED", "curlCode: 6, no host"])
def test_other_errors_are_raised_at_once(pauses, text):
    def work():
        raise OSError(text)

    with pytest.raises(OSError, match=text[:8]):
        patiently(work)
    assert pauses == []


def test_meanings_are_short():
    assert meaning_of(OSError(_NO_BUCKET)) == "there is no such bucket"
    assert meaning_of(OSError("AWS Error ACCESS_DENIED during HeadObject")) == "access is denied"
    assert meaning_of(OSError("odd (Request ID: abc)\nsecond line")) == "odd"
