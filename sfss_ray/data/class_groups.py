"""Class groups: the outputs of a model joined to the classes of a target, or dropped.

A model of Cityscapes' 19 classes has outputs for wall and building, and CamVid's 11 classes have one for
both. A grouping states such a relation by class NAME. The groups are then the classes of the model, in
every stage and in every score.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sfss_ray.data.class_sets import ClassSet, class_set_of, plain_name
from sfss_ray.errors import DataError

Group = tuple[str, tuple[str, ...]]
"""The name of a group and its member classes."""


@dataclass(frozen=True)
class ClassGroups:
    """Named groups of a model's classes, in the order of the groups' ids, and the dropped classes."""

    name: str
    """Name of the target or of the file, and of the class set unless the groups are a known one."""
    groups: tuple[Group, ...]
    dropped: tuple[str, ...] = ()
    """Classes of the model that belong to no group. Their probability is left out."""

    def __post_init__(self):
        if not self.groups:
            raise DataError(f"{self} have no group: give a list of classes for each group's name")
        empty = next((name for name, members in self.groups if not members), None)
        if empty is not None:
            raise DataError(
                f"{self}: group {empty!r} has no class: list its classes, or leave it out"
            )
        twice = _first_repeated(name for name, _ in self.groups)
        if twice is not None:
            raise DataError(f"{self} have two groups called {twice!r}: join them, or rename one")
        self._refuse_repeated_classes()

    def __str__(self) -> str:
        return f"class groups {self.name!r}"

    def line(self) -> str:
        """Return 'sky; building = building + wall; dropped: background'."""
        return "; ".join(self.lines())

    def lines(self) -> list[str]:
        """Return a line for each group, and one for the dropped classes."""
        lines = [
            name if members == (name,) else f"{name} = {' + '.join(members)}"
            for name, members in self.groups
        ]
        return lines + ([f"dropped: {', '.join(self.dropped)}"] if self.dropped else [])

    def class_set(self) -> ClassSet:
        """Return the groups as a class set; a known one keeps its name and colours."""
        names = [name for name, _ in self.groups]
        members = tuple(members for _, members in self.groups)
        return replace(class_set_of(names, self.name), members=members)

    def member_indices(self, classes: ClassSet) -> tuple[tuple[int, ...], ...]:
        """Return the indices of each group's members among the model's classes."""
        return tuple(
            tuple(classes.classes.index(member) for member in members) for _, members in self.groups
        )

    def fitted(self, classes: ClassSet) -> ClassGroups:
        """Return the groups with the names of a model's classes; case, `_` and `-` make no difference.

        Raises:
            DataError: a listed class is not a class of the model, or one of the model's classes is
                neither in a group nor dropped, or listed twice.
        """
        fitted = ClassGroups(
            self.name,
            tuple(
                (name, tuple(self._class_of_model(m, f"group {name!r}", classes) for m in members))
                for name, members in self.groups
            ),
            tuple(self._class_of_model(m, "'dropped'", classes) for m in self.dropped),
        )
        absent = [name for name in classes.classes if name not in fitted._listed()]
        if absent:
            more = f" and {len(absent) - 1} more" if absent[1:] else ""
            raise DataError(
                f"{self} leave out {absent[0]!r}{more} of the model's classes: add it to a group, or"
                f' drop it with "dropped": ["{absent[0]}"]'
            )
        return fitted

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON and model files store them; lists keep the order."""
        groups = [[name, list(members)] for name, members in self.groups]
        return {"name": self.name, "groups": groups, "dropped": list(self.dropped)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassGroups:
        """Return the groups of `to_dict`."""
        groups = tuple((name, tuple(members)) for name, members in values["groups"])
        return cls(values["name"], groups, tuple(values["dropped"]))

    def _listed(self) -> list[str]:
        """Return every class that is in a group or dropped."""
        return [member for _, members in self.groups for member in members] + list(self.dropped)

    def _class_of_model(self, member: str, where: str, classes: ClassSet) -> str:
        """Return the model's name of a listed class."""
        if member in classes.classes:
            return member
        same = [name for name in classes.classes if plain_name(name) == plain_name(member)]
        if len(same) == 1:
            return same[0]
        similar = difflib.get_close_matches(member, classes.classes, n=1)
        hint = f" (similar: {similar[0]!r})" if similar else ""
        raise DataError(
            f"{self}: {where} lists {member!r}, which is not a class of the model{hint}: its classes"
            f" are {', '.join(classes.classes)}"
        )

    def _refuse_repeated_classes(self) -> None:
        twice = _first_repeated(self._listed())
        if twice is None:
            return
        owners = [f"group {name!r}" for name, members in self.groups for m in members if m == twice]
        owners += ["'dropped'"] * self.dropped.count(twice)
        raise DataError(
            f"{self} list {twice!r} twice, in {' and in '.join(owners[:2])}: list each class once"
        )


def _first_repeated(names: Iterable[str]) -> str | None:
    counts = Counter(names)
    return next((name for name, count in counts.items() if count > 1), None)
