"""Files that appear under their names when they are complete and on the disk."""

import os
import secrets


def replace(target: str, content: bytes) -> None:
    """Put a file in its place at once; `open` gives it the mode that the umask asks for."""
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    _sync_directory(directory)


def _sync_directory(directory: str) -> None:
    """Make a new name last through a power failure, where the system can open a directory (not Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
