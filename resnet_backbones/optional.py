"""Optional libraries that several subpackages use."""

from types import ModuleType

from .errors import UserError


def import_timm() -> ModuleType:
    """timm. Raises `UserError` if it is not installed."""
    try:
        import timm
        import timm.data
        import timm.optim
    except ImportError:
        raise UserError(
            "timm: and timm:// names, hosts.timm and LAMB need timm, which is not installed: pip install timm"
        ) from None
    return timm
