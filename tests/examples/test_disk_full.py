import errno
import os
from pathlib import Path

import pytest


def save(path, data):
    """The code under test: replaces a file, or leaves the old one as it was."""
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@pytest.mark.sandbox(disk="8M")
def test_a_full_disk_costs_no_old_file():
    # Not tmp_path: pytest's own directory is shared with the machine, and as large as its disk.
    path = Path("/var/tmp/state")
    save(path, b"old")
    with pytest.raises(OSError) as caught:
        save(path, bytes(16 << 20))
    print(caught.value.strerror)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert not path.with_name("state.part").exists()
