"""Files and folders that are written whole or not at all, whatever ends the process that writes them."""

from isobit.files.json_text import json_text, plain
from isobit.files.path_checks import (
    check_file_writable,
    check_not_replaced,
    check_unpacked_size,
    check_writable,
    is_file,
    is_there,
)
from isobit.files.temporary_folder import temporary_folder
from isobit.files.write_file import write_atomically
from isobit.files.write_folder import write_folder

__all__ = [
    "check_file_writable",
    "check_not_replaced",
    "check_unpacked_size",
    "check_writable",
    "is_file",
    "is_there",
    "json_text",
    "plain",
    "temporary_folder",
    "write_atomically",
    "write_folder",
]
