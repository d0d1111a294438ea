"""Reads of files that may lie on a network: tried again where the fault may pass."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

PAUSES = (0.1, 1.0, 5.0)  # seconds before the second, third and fourth try
LASTING = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EFBIG,
}  # fmt: skip

T = TypeVar("T")


def with_retries(read: Callable[[], T]) -> T:
    """`read()`, tried again after `OSError`s that may pass, such as EIO, ESTALE or ETIMEDOUT; the last is raised."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno is None or error.errno in LASTING:
                raise
            logger.warning("%s; trying again in %g s", error, pause)
            time.sleep(pause)
    return read()
