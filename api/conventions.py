"""What scikit-learn asks of an estimator beside its methods, written without it: it is imported where it asks.

An estimator's parameters are the arguments of its constructor, kept under their names and looked at by `fit` alone.
What `fit` finds has names that end in an underscore.
"""

import inspect
from typing import Any, Self

from api.arrays import InputError


class Estimator:
    """A classifier by scikit-learn's conventions: it can be cloned, put into a pipeline, searched over."""

    _estimator_type = "classifier"  # which scikit-learn before 1.6 asks

    @classmethod
    def _parameters(cls) -> dict[str, Any]:
        """Return the constructor's arguments with their defaults."""
        given = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in given}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name; no parameter is an estimator, so that `deep` changes nothing."""
        return {name: getattr(self, name) for name in sorted(self._parameters())}

    def set_params(self, **parameters: Any) -> Self:
        """Set parameters by name. Raises InputError for one that there is not."""
        known = self._parameters()
        for name, value in parameters.items():
            if name not in known:
                raise InputError(f"invalid parameter {name!r} of {type(self).__name__}; it has {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        """Return the call that makes it, without the parameters that have their defaults."""
        given = [
            f"{name}={getattr(self, name)!r}"
            for name, default in self._parameters().items()
            if getattr(self, name, default) is not default and getattr(self, name, default) != default
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def __sklearn_is_fitted__(self) -> bool:
        """Tell whether `fit` has been called."""
        return hasattr(self, "head_")

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn from 1.6 on wants to know of a classifier."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(),
        )

    def _more_tags(self) -> dict[str, Any]:
        """Return what scikit-learn before 1.6 wants to know."""
        return {"requires_y": True}

    def _get_tags(self) -> dict[str, Any]:
        """Return all tags of scikit-learn before 1.6."""
        from sklearn.utils._tags import _DEFAULT_TAGS

        return {**_DEFAULT_TAGS, **self._more_tags()}

    def _require_fitted(self) -> None:
        """Raise scikit-learn's NotFittedError, or InputError where it is missing, before `fit`."""
        if self.__sklearn_is_fitted__():
            return
        text = f"This {type(self).__name__} instance is not fitted yet: call fit with arrays first"
        try:
            from sklearn.exceptions import NotFittedError
        except ImportError:
            raise InputError(text) from None
        raise NotFittedError(text)
