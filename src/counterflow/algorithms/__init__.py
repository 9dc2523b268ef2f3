"""Local learning rules: what enters, what goes up and down, what is learnt. They know no communication.

Every module of this folder may define an `Algorithm`, a system of local rules, or a `Reference`, which is trained end
to end; each is known by the default name of its ``Config``.
"""

import importlib
import pkgutil

from counterflow.algorithms.reference import Reference
from counterflow.algorithms.rule import Algorithm, Column, LocalRule, Task

__all__ = ["ALGORITHMS", "REFERENCES", "Algorithm", "Column", "LocalRule", "Reference", "Task"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

ALGORITHMS: dict[str, type[Algorithm]] = {cls.Config.name: cls for cls in Algorithm.__subclasses__()}
REFERENCES: dict[str, type[Reference]] = {cls.Config.name: cls for cls in Reference.__subclasses__()}
