"""Messages of one line."""


def one_line(message: object) -> str:
    """The text of a message or an error without line breaks; its type if it has no text."""
    return " ".join(str(message).split()) or type(message).__name__


def first_line(error: BaseException, longest: int = 300) -> str:
    """The first line of an exception's message: JAX's messages have many lines."""
    return (str(error).strip().splitlines() or ["(no message)"])[0][:longest]
