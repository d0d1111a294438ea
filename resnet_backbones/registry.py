"""fvcore's name → object table, with errors that list what exists."""

from collections.abc import Callable
from typing import Any

import fvcore.common.registry

from .errors import UserError, unknown


class Registry(fvcore.common.registry.Registry):
    """`Registry("backbone")`: an unknown name lists close matches and all valid ones, a second registration raises."""

    def add(self, name: str, obj: Callable) -> None:
        """Register `obj` under a name of its own (`register` takes `obj.__name__`)."""
        self._do_register(name, obj)

    def _do_register(self, name: str, obj: Any) -> None:
        if name in self:
            raise ValueError(f"The {self._name} {name!r} is already registered; choose another name.")
        super()._do_register(name, obj)

    def get(self, name: str) -> Any:
        if name not in self:
            raise UserError(unknown(self._name, name, dict(self)))
        return super().get(name)
