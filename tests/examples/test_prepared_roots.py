import pytest

PREPARE = """
mkdir /app
for number in 1 2 3; do echo "record $number"; done > /app/records
rm /etc/hostname 2> /dev/null
echo ready
"""


@pytest.fixture(scope="session")
def prepared(nsbox_session):
    with nsbox_session.start(["sh", "-c", PREPARE], rootfs="busybox", workdir="/app") as box:
        assert box.wait() == 0, box.logs()
        return box.commit("prepared").id


def test_twenty_boxes_start_from_it(nsbox, prepared):
    script = "echo record 4 >> records; sed -i 1d records; wc -l < records"
    boxes = [nsbox.start(["sh", "-c", script], rootfs=prepared) for _ in range(20)]
    assert [box.wait() for box in boxes] == [0] * 20
    assert {box.logs() for box in boxes} == {"3\n"}


def test_it_is_as_it_was(nsbox, prepared):
    assert nsbox.run(["head", "-n1", "records"], rootfs=prepared, check=True).stdout == "record 1\n"
    assert "prepared" in nsbox.run(["cat", "/etc/hostname"], rootfs=prepared, hostname="prepared").stdout
