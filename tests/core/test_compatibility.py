"""A plugin that is for another Taskyard says what to upgrade."""

from __future__ import annotations

import pytest

from taskyard.compatibility import misfit, required


@pytest.mark.parametrize(
    ("requires", "version"),
    [
        ([], "0.1.0"),
        (["pydantic>=99", "taskyard-demo>=99"], "0.1.0"),
        (["taskyard"], "0.1.0"),
        (["Taskyard >=0.1,<1"], "0.1.0"),
        (["taskyard[api]>=99; extra == 'test'", "taskyard>=0.1"], "0.1.0"),
        (["taskyard>=99; python_version < '3'"], "0.1.0"),
        (["taskyard>=0.1"], "0.2.0.dev1"),
    ],
)
def test_a_plugin_that_fits_is_told_nothing(requires: list[str], version: str) -> None:
    assert misfit("taskyard-words", requires, version) is None


@pytest.mark.parametrize(
    ("requires", "told"),
    [
        (["taskyard>=99"], "taskyard-words needs taskyard>=99, and this is 0.1.0. Upgrade Taskyard: pip install --upgrade 'taskyard>=99'"),
        (["taskyard~=0.4"], "Upgrade Taskyard: pip install --upgrade 'taskyard~=0.4'"),
        (["taskyard==2.*"], "Upgrade Taskyard: pip install --upgrade 'taskyard==2.*'"),
        (["taskyard<0.1"], "taskyard-words is made for taskyard<0.1, and this is 0.1.0. Upgrade the plugin: pip install --upgrade taskyard-words"),
        (["taskyard>=0.0.1,<0.0.9"], "Upgrade the plugin: pip install --upgrade taskyard-words"),
        (["taskyard==0.0.1"], "Upgrade the plugin: pip install --upgrade taskyard-words"),
    ],
)
def test_one_that_does_not_says_what_to_upgrade(requires: list[str], told: str) -> None:
    assert told in str(misfit("taskyard-words", requires, "0.1.0"))


def test_only_what_is_said_of_taskyard_itself_counts() -> None:
    assert required(["taskyard-demo>=2", "pydantic>=2"]) is None
    assert str(required(["taskyard>=0.1", "taskyard<1"])) in ("<1,>=0.1", ">=0.1,<1")
