import pytest

from resnet_backbones.errors import UserError
from resnet_backbones.registry import Registry


@pytest.fixture
def registry():
    registry = Registry("colour")
    registry.add("green", object())
    registry.add("grey", object())
    return registry


def test_unknown_name_lists_close_and_valid_names(registry):
    with pytest.raises(
        UserError, match=r"Unknown colour 'gren'\. Did you mean green or grey\? Available: green, grey\."
    ):
        registry.get("gren")


def test_second_registration_raises(registry):
    with pytest.raises(ValueError, match="colour 'green' is already registered"):
        registry.add("green", object())


def test_decorator_registers_under_the_functions_name(registry):
    @registry.register()
    def blue():
        return 1

    assert registry.get("blue") is blue
