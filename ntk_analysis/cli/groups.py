"""Groups of options that commands share: a dataclass whose fields are options, under one heading of --help.

@dataclass(frozen=True)
class Images(Group, title="Images"):
    count: Annotated[int | None, Option(help="...")] = None

@grouped
def kernel(path: ..., images: Images) -> None: ...  # has --count, and gets Images(count=...)
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from inspect import Parameter, signature
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from typer.core import TyperCommand
from typer.models import OptionInfo


@dataclass(frozen=True)
class Group:
    """A dataclass whose fields are options, each with a default; `title` is their heading in --help."""

    title: ClassVar[str] = "Options"

    def __init_subclass__(cls, title: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.title = title or cls.title

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults, by name."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command with all fields of its groups as options, in their places; it is called with the groups."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type[Group]] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, Group):
            groups[name] = hint
            parameters += _options(hint)
        else:
            parameters.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hint))

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**values, **made)

    run.__signature__ = signature(command).replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(group: type[Group]) -> Iterator[Parameter]:
    """One keyword argument for each field, under the group's heading."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        kind, option = get_args(hints[field.name])
        assert isinstance(option, OptionInfo), "a field of a group is Annotated[type, Option(...)]"
        option = copy.copy(option)
        option.rich_help_panel = group.title
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, option])


class GroupedCommand(TyperCommand):
    """A command whose --help, plain text, has a heading for each group."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes arguments, options without a group, then each group in the order of the command's arguments."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                own = "Arguments" if parameter.param_type_name == "argument" else "Options"
                title = getattr(parameter, "rich_help_panel", None) or own
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
