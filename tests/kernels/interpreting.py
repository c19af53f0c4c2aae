"""Runs Triton functions in Triton's interpreter, and leaves Triton as it was."""

from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction


def interpret(monkeypatch, names):
    """Replaces the functions that modules have under some names by interpreted ones.

    Args:
        monkeypatch: puts them back.
        names: module → names of its Triton functions.
    """
    for module, functions in names.items():
        for name in functions:
            monkeypatch.setattr(module, name, InterpretedFunction(getattr(module, name).fn))

    def call_and_restore(self, *args):
        # The interpreter does not put back what it changes in Triton's language for inner calls.
        scope = interpreter._patch_lang(self.fn)
        try:
            return self.rewrite()(*args)
        finally:
            scope.restore()

    monkeypatch.setattr(InterpretedFunction, "__call__", call_and_restore)
