"""Learning rules: what enters, what goes up and down, what is learnt. They know no communication.

Every module of this folder may define a `LocalAlgorithm`, or an `EndToEnd` reference; each is known by the default
of its ``name``.
"""

import importlib
import pkgutil

from counterflow.algorithms.end_to_end import EndToEnd
from counterflow.algorithms.rule import LocalAlgorithm, LocalRule, PerBlock, RuleContext, RuleSet, Task

__all__ = [
    "ALGORITHMS",
    "END_TO_END",
    "EndToEnd",
    "LocalAlgorithm",
    "LocalRule",
    "PerBlock",
    "RuleContext",
    "RuleSet",
    "Task",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

ALGORITHMS: dict[str, type[LocalAlgorithm]] = {cls.name: cls for cls in LocalAlgorithm.__subclasses__()}
END_TO_END: dict[str, type[EndToEnd]] = {cls.name: cls for cls in EndToEnd.__subclasses__()}
