"""Which values a key takes, beside its type in schema.py: `Annotated[str, one_of(SCORERS)]`."""

from dataclasses import dataclass

from lhtrain.conf.nearest import nearest
from lhtrain.registry import Registry


@dataclass(frozen=True)
class OneOf:
    """A name in a registry, or one of a few others."""

    registry: Registry
    others: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """All names, those of plugins that are loaded among them."""
        return [*self.others, *self.registry.names()]

    def broken_rule(self, value: object) -> str | None:
        """What `value` must be, if it is not."""
        names = self.names()
        if value in names:
            return None
        return f"must be one of {', '.join(names)}{nearest(str(value), names)}"


def one_of(registry: Registry, *others: str) -> OneOf:
    """The value is a name in `registry`, or one of `others`."""
    return OneOf(registry, others)
