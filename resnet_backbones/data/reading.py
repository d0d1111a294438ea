"""Reading files that may be on a network: transient errors are retried."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

logger = logging.getLogger(__name__)

PAUSES = (0.1, 1.0, 5.0)  # seconds before the second, third and fourth attempt
PERMANENT = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
    errno.EFBIG,
}  # fmt: skip

T = TypeVar("T")


def with_retries(read: Callable[[], T]) -> T:
    """`read()`, retried after a transient `OSError` such as EIO, ESTALE or ETIMEDOUT; raises the last one."""
    for pause in PAUSES:
        try:
            return read()
        except OSError as error:
            if error.errno is None or error.errno in PERMANENT:
                raise
            logger.warning("%s; retrying in %g s", error, pause)
            time.sleep(pause)
    return read()
