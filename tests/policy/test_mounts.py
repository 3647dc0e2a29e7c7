from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_nsbox.policy.errors import BadValueError
from pytest_nsbox.policy.mounts import Tmpfs, Volume, parse_tmpfs, parse_volume, parse_volumes, tidy

# Anything that a file name may hold, the separators of other notations first of all.
NAMES = st.text(
    st.one_of(st.sampled_from(":, \\\"'%=é日\n\t"), st.characters(exclude_characters="/\0", exclude_categories=["Cs"])),
    min_size=1,
)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=4).map(
    lambda names: "/" + "/".join(names)
)


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("/a:/b", Volume("/a", "/b", False, "bind")),
        ("/a:/b:ro", Volume("/a", "/b", True, "bind")),
        ("/a:/b:rw", Volume("/a", "/b", False, "bind")),
        ("./data:/b", Volume("./data", "/b", False, "bind")),
        ("../data:/b", Volume("./../data", "/b", False, "bind")),
        (".:/b", Volume("./", "/b", False, "bind")),
        ("cache:/b", Volume("cache", "/b", False, "volume")),
        ("cache_1.x-y:/b:ro", Volume("cache_1.x-y", "/b", True, "volume")),
        ("/with space, comma:/mnt/é 日:ro", Volume("/with space, comma", "/mnt/é 日", True, "bind")),
        ("/a:b:/c:d", Volume("/a:b", "/c:d", False, "bind")),
        ("/a:b:/c:d:ro", Volume("/a:b", "/c:d", True, "bind")),
        ("/a:/b:/c", Volume("/a:/b", "/c", False, "bind")),
        ("//a//b/./c/:/d//e/", Volume("/a/b/c", "/d/e", False, "bind")),
        ("/:/host", Volume("/", "/host", False, "bind")),
        (["/a", "/b:/c"], Volume("/a", "/b:/c", False, "bind")),
        (("/a", "/b:ro", "rw"), Volume("/a", "/b:ro", False, "bind")),
        (("/a", "/b", "ro"), Volume("/a", "/b", True, "bind")),
    ],
)
def test_volumes_are_split_where_the_absolute_target_begins(text, volume):
    assert parse_volume(text) == volume


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/a", "no absolute DST"),
        ("/a:b", "no absolute DST"),
        ("", "no absolute DST"),
        (":/b", "no SRC"),
        ("/a:/", "the root itself cannot be mounted over"),
        ("/a:/./", "the root itself cannot be mounted over"),
        ("/a:/b/../c", "'..' in the mount point"),
        ("na me:/b", "'na me' is no name of a volume"),
        ("~/x:/b", "'~/x' is no name of a volume"),
        ("/a:/b:ro,z", "the option 'ro,z' is not known here"),
        ("/a:/b:Z", "the option 'Z' is not known here"),
        ("/a\0:/b", "a path with a NUL character"),
        ("/a:/b\0", "a path with a NUL character"),
        (["/a"], "not a volume"),
        (["/a", "/b", "wr"], "not a volume"),
        (["/a", "b"], "'b' is not an absolute path"),
        (7, "not a text or a path"),
        (["/a", 7], "not a text or a path"),
    ],
)
def test_what_is_no_volume_is_refused_with_the_reason(text, reason):
    with pytest.raises(BadValueError, match=reason.replace("..", r"\.\.")):
        parse_volume(text)


def test_one_volume_need_not_be_in_a_list():
    assert parse_volumes("/a:/b") == parse_volumes(["/a:/b"]) == (Volume("/a", "/b"),)
    assert parse_volumes([]) == ()


@given(PATHS, PATHS, st.booleans())
def test_any_two_paths_make_a_volume_as_a_list(source, target, readonly):
    volume = parse_volume([source, target, "ro" if readonly else "rw"])
    assert volume == Volume(source, target, readonly, "bind")


@given(PATHS, PATHS.filter(lambda path: ":/" not in path), st.booleans())
def test_any_two_paths_make_a_volume_as_a_text_with_its_mode(source, target, readonly):
    volume = parse_volume(f"{source}:{target}:{'ro' if readonly else 'rw'}")
    assert volume == Volume(source, target, readonly, "bind")


@pytest.mark.parametrize(
    ("value", "mounts"),
    [
        (["/t"], [Tmpfs("/t")]),
        ("/t", [Tmpfs("/t")]),
        (["/t:64M", "/u"], [Tmpfs("/t", 2**26), Tmpfs("/u")]),
        ({"/t": "64M", "/u": None, "/v:w": 5}, [Tmpfs("/t", 2**26), Tmpfs("/u"), Tmpfs("/v:w", 5)]),
        ([{"/t": "1K"}, "/u"], [Tmpfs("/t", 1024), Tmpfs("/u")]),
        (["/with: colon"], [Tmpfs("/with: colon")]),
        (["/a:b/c:2K"], [Tmpfs("/a:b/c", 2048)]),
        (["/a:1b/c"], [Tmpfs("/a:1b/c")]),
        (["/a:size=1M/c", "/a:sized", "/a:"], [Tmpfs("/a:size=1M/c"), Tmpfs("/a:sized"), Tmpfs("/a:")]),
        (["/é 日, x:1K"], [Tmpfs("/é 日, x", 1024)]),
        (["/t/"], [Tmpfs("/t")]),
    ],
)
def test_tmpfs_mounts_are_texts_or_a_table_of_sizes(value, mounts):
    assert parse_tmpfs(value) == tuple(mounts)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["t"], "'t' is not an absolute path"),
        (["/t:0"], "a size of zero"),
        (["/t:64X"], "not a size"),
        (["/t:size=64M"], "'size=64M' is as mount and Docker have it: a SIZE alone is read here"),
        ("/t:noexec,size=64M,mode=1777", "a SIZE alone is read here"),
        ({"/t": "lots"}, "not a size"),
        (["/"], "the root itself cannot be mounted over"),
        (7, "not a text or a path"),
        ({7: 1}, "not a text or a path"),
        ([["/t"]], "not a text or a path"),
    ],
)
def test_what_is_no_tmpfs_is_refused_with_the_reason(value, reason):
    with pytest.raises(BadValueError, match=reason):
        parse_tmpfs(value)


@given(PATHS, st.none() | st.integers(1, 2**40))
def test_any_path_makes_a_tmpfs_as_a_table(target, size):
    assert parse_tmpfs({target: size}) == (Tmpfs(target, size),)


def test_path_objects_are_paths(tmp_path):
    assert parse_volume([tmp_path, "/b"]).source == str(tmp_path)
    assert parse_tmpfs(tmp_path) == (Tmpfs(str(tmp_path)),)


@given(st.text(st.sampled_from("/.a"), max_size=12))
def test_a_tidied_path_stays_tidied_and_keeps_its_parents(path):
    done = tidy(path)
    assert tidy(done) == done
    assert done.count("..") == path.count("..") or "..." in path
    assert "//" not in done
    assert done.startswith("/") == path.startswith("/")
