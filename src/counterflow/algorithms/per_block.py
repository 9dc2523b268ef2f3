"""One local rule for every block: what a user's own rule, Pred-Sim and the like need of a rule set."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

from counterflow.algorithms.rule import BlockContext, LocalAlgorithm, LocalRule, RuleContext, RuleSet
from counterflow.config.validators import named_call


class PerBlockRules(RuleSet):
    """The same kind of rule for every block, each made under a random stream of its own."""

    def __init__(self, context: RuleContext, stream: str, make: Callable[[BlockContext], LocalRule]) -> None:
        super().__init__(context)
        self._stream = stream
        self._make = make

    def rule(self, block: int) -> LocalRule:
        with self.seeded(self._stream, block):
            return self._make(self.context.block(block))


@dataclass(kw_only=True)
class CustomRule(LocalAlgorithm):
    """A rule of the user's own by its name: ``algorithm=custom algorithm.target=package.module.Class``."""

    name: str = "custom"
    target: str = ""
    """``package.module.Class``: a `LocalRule` that is made with a `BlockContext` and ``args``."""
    args: Any = None
    """Named arguments of the rule, ``{name: value, ..}``; None are no arguments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.args = named_call("algorithm", self.target, self.args, "LocalRule", "Class")

    def rule_set(self, context: RuleContext) -> RuleSet:
        module, _, name = self.target.rpartition(".")
        try:
            rule = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"algorithm.target={self.target}: {str(error).splitlines()[0]}") from error
        return PerBlock(rule, **self.args).rule_set(context)


class PerBlock(CustomRule):
    """A rule of the user's own: ``PerBlock(Readout, smoothing=0.1)`` makes ``Readout(block, smoothing=0.1)`` for every
    block, with ``block`` a `BlockContext`.
    """

    def __init__(self, rule: type[LocalRule], /, **options: Any) -> None:
        """Raises ``ValueError`` where ``rule`` is no `LocalRule` or does not take ``options``."""
        if not (isinstance(rule, type) and issubclass(rule, LocalRule)):
            raise ValueError(f"algorithm.target={getattr(rule, '__name__', rule)}: must be a subclass of LocalRule")
        self.name = "custom"
        self.target = f"{rule.__module__}.{rule.__qualname__}"
        self.args = options
        self._rule = rule
        try:
            signature(rule).bind(None, **options)
        except TypeError as error:
            raise ValueError(f"algorithm.args={options}: {error}, for {self.target}") from error

    def rule_set(self, context: RuleContext) -> RuleSet:
        return PerBlockRules(context, self.name, lambda block: self._rule(block, **self.args))
