"""What an image is: layers, and a config that says how to run a program in it. Source: the OCI image specification
(config.md) and Docker's reference of RUN, ENTRYPOINT, CMD, ENV, USER and WORKDIR.
"""

from __future__ import annotations

from pytest_nsbox.policy.errors import BoxFailed
from pytest_nsbox.policy.record import keyword_record, record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pytest_nsbox.policy.spec import Spec

# What Docker gives a container whose image does not say.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@keyword_record
class ImageConfig:
    """How programs are run in an image's root; "" and () where it does not say.

    ports are written "80/tcp"; volumes are paths.
    """

    env: tuple[tuple[str, str], ...] = ()
    cmd: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    def argv(self, argv: Sequence[str] = ()) -> tuple[str, ...]:
        """Return what Docker runs for `argv`: the entrypoint, then `argv`, or else the image's command.

        Raises BoxFailed if that is nothing.
        """
        whole = (*self.entrypoint, *(argv or self.cmd))
        if not whole:
            raise BoxFailed("nothing to run: no command was given, and the image has neither Cmd nor Entrypoint")
        return whole

    def applied(self, spec: Spec) -> Spec:
        """Return `spec` with the image's env below its own, and with the image's user and working directory where it
        says none.
        """
        env: dict[str, str | None] = dict(self.env)
        env.setdefault("PATH", DEFAULT_PATH)
        env.update(spec.env)
        return replace(
            spec,
            env=tuple(env.items()),
            user=spec.user if spec.user is not None else self.user or None,
            workdir=spec.workdir if spec.workdir is not None else self.workdir or None,
        )

    def committed(self, argv: Sequence[str], spec: Spec) -> ImageConfig:
        """Return the config of an image of a container that ran `argv` (what it was given, without the entrypoint) with
        the `applied` spec, as Docker's commit writes it.
        """
        env = tuple((name, value) for name, value in spec.env if value is not None)
        workdir, user = spec.workdir or self.workdir, spec.user or self.user
        return replace(self, env=env, cmd=tuple(argv) or self.cmd, workdir=workdir, user=user)

    def shown(self) -> dict[str, object]:
        """Return it as `docker image inspect` spells it, without what is not set."""
        spelled: dict[str, object] = {
            "Env": [f"{name}={value}" for name, value in self.env],
            "Cmd": list(self.cmd),
            "Entrypoint": list(self.entrypoint),
            "WorkingDir": self.workdir,
            "User": self.user,
            "Volumes": {path: {} for path in self.volumes},
            "ExposedPorts": {port: {} for port in self.ports},
            "StopSignal": self.stop_signal,
            "Labels": dict(self.labels),
        }
        return {name: value for name, value in spelled.items() if value}


def _can_be_said(value: object) -> bool:
    """Whether it is a text that a program can be given."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def read_config(given: Mapping[str, Any]) -> ImageConfig:
    """Return the `config` object of an image's JSON. Raises BoxFailed for values of the wrong kind."""

    def texts(name: str) -> tuple[str, ...]:
        value = given.get(name)
        if isinstance(value, str) and name != "Env":  # old builders wrote a shell line so
            value = ["/bin/sh", "-c", value]
        if not isinstance(value or [], list) or not all(map(_can_be_said, value or [])):
            raise BoxFailed(f"the image's config has {name} {value!r}: a list of texts is expected")
        return tuple(value or [])

    def text(name: str) -> str:
        value = given.get(name) or ""
        if not _can_be_said(value):
            raise BoxFailed(f"the image's config has {name} {value!r}: a text is expected")
        return str(value)

    def table(name: str) -> dict[str, Any]:
        value = given.get(name) or {}
        if not isinstance(value, dict):
            raise BoxFailed(f"the image's config has {name} {value!r}: a table is expected")
        return value

    workdir = text("WorkingDir")
    if workdir and not workdir.startswith("/"):
        raise BoxFailed(f"the image's config has WorkingDir {workdir!r}: an absolute path is expected")
    pairs = [entry.partition("=") for entry in texts("Env")]
    if not all(name and "\0" not in name + value for name, _, value in pairs):
        raise BoxFailed(f"the image's config has Env {given.get('Env')!r}: NAME=VALUE is expected")
    return ImageConfig(
        env=tuple({name: value for name, _, value in pairs}.items()),
        cmd=texts("Cmd"),
        entrypoint=texts("Entrypoint"),
        workdir=workdir,
        user=text("User"),
        volumes=tuple(table("Volumes")),
        ports=tuple(table("ExposedPorts")),
        stop_signal=text("StopSignal"),
        labels=tuple((name, str(value)) for name, value in table("Labels").items()),
    )


@keyword_record
class Image:
    """A root filesystem.

    id      "sha256:" and 64 hex digits, of its config; "" for a directory that is used where it is
    names   "name:tag" each
    layers  directories, the lowest first, as overlayfs reads them
    size    bytes in the layers' files
    """

    id: str = ""
    names: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    config: ImageConfig = ImageConfig()
    size: int = 0

    def for_box(self, shown: Sequence[str] = (), files: Sequence[str] = ()) -> tuple[object, ...]:
        """Return what the warden must know of it: plain values, `ImageRoot.from_plain` is the way back."""
        return (self.layers, tuple(shown), tuple(files))


@keyword_record
class ImageFacts:
    """What a plan needs to know of an image and of the machine, once its layers could be looked into.

    passwd, group  texts of the image's files
    missing        (host path, path in the box) of files that are wanted and that the image does not have
    hosts, hostname, resolv_conf  what boxes on the host's network have in these files
    """

    root: ImageRoot
    passwd: str = ""
    group: str = ""
    missing: tuple[tuple[str, str], ...] = ()
    hosts: str = ""
    hostname: str = ""
    resolv_conf: str = ""


@record
class ImageRoot:
    """The root of a box that is an image.

    layers  directories of the host, the lowest first
    shown   directories of the host that the box has as well, copy-on-write
    files   files of the host that it has as well where the image has none
    """

    layers: tuple[str, ...]
    shown: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @staticmethod
    def from_plain(values: Sequence[Any]) -> ImageRoot:
        """Return what `Image.for_box` told."""
        return ImageRoot(*(tuple(part) for part in values))
