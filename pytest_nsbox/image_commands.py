"""`nsbox image`: import, ls, inspect, export, rm."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pytest_nsbox.columns import columns
from pytest_nsbox.images.store import Store
from pytest_nsbox.policy.errors import ImageError
from pytest_nsbox.policy.units import format_size

if TYPE_CHECKING:
    import argparse

    from pytest_nsbox.policy.image import Image


def add_to(commands: Any) -> None:
    """Add the commands to an argparse parser's sub-parsers."""
    parser = commands.add_parser("image", help="images: root filesystems to run in")
    own = parser.add_subparsers(dest="image_command", required=True, metavar="COMMAND")
    taking = own.add_parser("import", help="keep a directory, a tar, an archive of docker save or an OCI layout")
    taking.add_argument("path", metavar="PATH", help="PATH:NAME takes one image of several")
    taking.add_argument("name", metavar="NAME[:TAG]", nargs="?", help="default: the name that the archive tells")
    taking.set_defaults(run=_import)
    listing = own.add_parser("ls", help="list the images")
    listing.add_argument("-q", "--quiet", action="store_true", help="ids only")
    listing.set_defaults(run=_list)
    showing = own.add_parser("inspect", help="show images as JSON: config, layers, where these lie")
    showing.add_argument("images", metavar="IMAGE", nargs="+")
    showing.set_defaults(run=_inspect)
    giving = own.add_parser("export", help="write an image as an OCI layout")
    giving.add_argument("image", metavar="IMAGE")
    giving.add_argument("directory", metavar="DIRECTORY", help="empty, or not there yet")
    giving.set_defaults(run=_export)
    removing = own.add_parser("rm", help="remove images, and the layers that no other image has")
    removing.add_argument("images", metavar="IMAGE", nargs="+")
    removing.set_defaults(run=_remove)


def _import(options: argparse.Namespace) -> int:
    print(Store().add(options.path, options.name).id)
    return 0


def _list(options: argparse.Namespace) -> int:
    images = Store().images()
    if options.quiet:
        for image in images:
            print(image.id)
        return 0
    rows = [("NAME", "IMAGE ID", "LAYERS", "SIZE")]
    for image in images:
        told = image.id[7:19], str(len(image.layers)), format_size(image.size)
        rows += [(name, *told) for name in image.names or ("<none>",)]
    for line in columns(rows):
        print(line)
    return 0


def _kept(store: Store, wanted: str) -> Image:
    image = store.find(wanted, ".")
    if not image.id:
        raise ImageError(f"{wanted}: a directory that was not imported (nsbox image import)")
    return image


def describe(wanted: str) -> dict[str, Any]:
    """What `nsbox image inspect` shows of an image. Raises ImageError."""
    store = Store()
    image = _kept(store, wanted)
    document = store.document(image)
    return {
        "Id": image.id,
        "RepoTags": list(image.names),
        "Created": document.get("created"),
        "Architecture": document.get("architecture"),
        "Os": document.get("os"),
        "Config": document.get("config") or {},
        "Size": image.size,
        "RootFS": {"Type": "layers", "Layers": document["rootfs"]["diff_ids"]},
        "GraphDriver": {"Name": "overlay", "Data": {"Layers": list(image.layers)}},
    }


def sweep_images() -> None:
    """Remove layers that no image has and nobody uses, and what killed imports left."""
    Store().sweep()


def _inspect(options: argparse.Namespace) -> int:
    print(json.dumps([describe(wanted) for wanted in options.images], indent=4))
    return 0


def _export(options: argparse.Namespace) -> int:
    store = Store()
    store.export(_kept(store, options.image), options.directory)
    return 0


def _remove(options: argparse.Namespace) -> int:
    store = Store()
    for wanted in options.images:
        print(store.remove(wanted).id)
    return 0
