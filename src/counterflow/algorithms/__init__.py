"""Local learning rules: what enters, what goes up and down, what is learnt. They know no communication.

Every module of this folder may define an `Algorithm`, a system of local rules, or a `EndToEnd`, which is trained end
to end; each is known by the default name of its ``Config``.
"""

import importlib
import pkgutil

from counterflow.algorithms.end_to_end import EndToEnd
from counterflow.algorithms.rule import Algorithm, LocalRule, RuleSet, Task

__all__ = ["ALGORITHMS", "END_TO_END", "Algorithm", "EndToEnd", "LocalRule", "RuleSet", "Task"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

ALGORITHMS: dict[str, type[Algorithm]] = {cls.Config.name: cls for cls in Algorithm.__subclasses__()}
END_TO_END: dict[str, type[EndToEnd]] = {cls.Config.name: cls for cls in EndToEnd.__subclasses__()}
