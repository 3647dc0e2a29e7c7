import re
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="no java here")


def heap_of_a_jvm():
    """The largest heap, in MiB, that a JVM without container support gives itself."""
    options = ["-XX:-UseContainerSupport", "-XX:+PrintFlagsFinal", "-version"]
    flags = subprocess.run(["java", *options], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"MaxHeapSize\s+= (\d+)", flags)[1]) >> 20


@pytest.mark.sandbox(mem="256M")
def test_the_bug():
    heap = heap_of_a_jvm()
    print(f"a box of 256 MiB, and a heap of {heap} MiB")
    assert heap > 256


@pytest.mark.sandbox(mem="256M", proc="limits")
def test_the_bug_is_gone():
    heap = heap_of_a_jvm()
    print(f"a box of 256 MiB, and a heap of {heap} MiB")
    assert heap <= 128
