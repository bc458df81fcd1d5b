"""The one error that the operator's tools show to a person as a sentence instead of a traceback."""


class Failure(Exception):
    """Its text is finished: what is wrong, and what to do about it."""
