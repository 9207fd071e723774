"""How annotations are checked where CHECK_ANNOTATIONS is set: by beartype, choices excepted."""

from typing import Any, Literal, get_origin

from beartype import beartype


def checked(what):
    """A function or class with checked annotations; a Literal is not checked: the library refuses other choices itself.

    Its refusal names the choices, and tests read it.
    """
    hints = getattr(what, "__annotations__", {})
    for name, hint in hints.items():
        if get_origin(hint) is Literal:
            hints[name] = Any
    return beartype(what)
