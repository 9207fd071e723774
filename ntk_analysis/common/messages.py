"""Messages of one line."""


def one_line(message: object) -> str:
    """The text of a message or an error without line breaks; its type if it has no text."""
    return " ".join(str(message).split()) or type(message).__name__
