"""What is said comes to be shown: the first piece at once, the others gathered, all of it once."""

from services.agents.runs.transcript import FLUSH_CHARS, FLUSH_INTERVAL_S, Transcript


def test_the_first_piece_is_due_at_once_and_later_ones_after_a_while() -> None:
    transcript = Transcript(is_held_back=False)
    assert not transcript.is_due(now=0)
    assert transcript.add("a")
    assert transcript.is_due(now=0)
    assert transcript.show(now=0) == "a"
    assert transcript.add("b")
    assert not transcript.add("c")
    assert not transcript.is_due(now=FLUSH_INTERVAL_S / 2)
    assert transcript.is_due(now=transcript.due_at)
    assert (transcript.rest(is_whole=False), transcript.text) == ("bc", "abc")


def test_too_much_to_wait_is_due_at_once() -> None:
    transcript = Transcript(is_held_back=False)
    transcript.add("a")
    transcript.show(now=0)
    transcript.add("b")
    assert transcript.add("c" * FLUSH_CHARS)
    assert transcript.is_full
    assert transcript.is_due(now=0)


def test_what_is_held_back_is_shown_whole_or_not_at_all() -> None:
    transcript = Transcript(is_held_back=True)
    assert not transcript.add("half a plan")
    assert not transcript.is_due(now=1)
    assert (transcript.rest(is_whole=False), transcript.rest(is_whole=True)) == ("", "half a plan")
    assert transcript.seen is None


def test_what_the_database_cannot_hold_is_mended() -> None:
    transcript = Transcript(is_held_back=False)
    assert not transcript.add("\0")
    transcript.add("a\0b\ud800")
    assert transcript.text == "ab?"
