"""Kinds of damage that a file may have: each is a function of its path."""


def flip(path, place=None):
    """Changes one bit of a file, in the middle of it or at a place."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def emptied(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthened(path):
    path.write_bytes(path.read_bytes() + b"\n")


def folder_in_place(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "first bit": lambda path: flip(path, 0),
    "middle bit": flip,
    "last bit": lambda path: flip(path, -1),
    "emptied": emptied,
    "truncated": truncated,
    "lengthened": lengthened,
    "missing": lambda path: path.unlink(),
    "a folder": folder_in_place,
}
