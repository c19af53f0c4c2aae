"""The compiler's errors; those a bundle's user can meet too are in `optimize.runtime.errors`.

OptimizeError
├── InputModelError           exit 6   the model or its example inputs cannot be captured
│   └── UnsupportedOpError             no axis rule or lowering for an op
├── RecipeError               exit 2   a recipe that cannot be read, or cannot work
│   └── PassDeclined                   a required pass does not apply, with its reason
├── PassError                 exit 6   a pass broke a graph: a defect of the pass, not of the input
├── ProcessError              exit 4   another process of the same run ended or did not answer
├── NumericsError             exit 1   NaN or Inf, or an oracle that failed
├── GateError                 exit 2   a gate that cannot be held: its policy, baseline or a side
└── QualityError              exit 1   over the quality budget, or a metric that cannot decide
"""

from optimize.runtime.errors import OptimizeError


class InputModelError(OptimizeError, TypeError):
    """The model, or its example inputs, cannot be captured."""

    code = "model"
    exit_code = 6


class UnsupportedOpError(InputModelError):
    """An op without an axis rule or without a lowering; the message names op, node and line."""

    code = "model.op"


class RecipeError(OptimizeError, ValueError):
    """A recipe that cannot be read, or passes that cannot work together."""

    code = "recipe"


class PassDeclined(RecipeError):
    """A pass the recipe requires does not apply; the message is the pass's reason."""

    code = "recipe.declined"


class PassError(OptimizeError):
    """A pass left a graph that breaks its specification, or failed where it should not."""

    code = "pass"
    exit_code = 6


class ProcessError(OptimizeError):
    """Another process of the same run ended, or did not answer in time."""

    code = "process"
    exit_code = 4


class NumericsError(OptimizeError, ArithmeticError):
    """NaN or Inf where there must be none, or an oracle that failed."""

    code = "numerics"
    exit_code = 1


class QualityError(OptimizeError, ValueError):
    """Over the quality budget, or a metric that cannot decide."""

    code = "quality"
    exit_code = 1


class GateError(OptimizeError, ValueError):
    """A gate that cannot be held: of its policy, its baseline, or a side that cannot run."""

    code = "gate"
