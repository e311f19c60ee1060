"""Which file systems should not be mapped into memory: those behind a network or a user process.

What flows in: the device number of an opened file. What flows out: the name of its file system if
it is remote. On those a page fault is a round trip, and a file that vanishes is a fatal signal.
"""

from __future__ import annotations

import os
import pathlib

# fmt: off
_REMOTE = frozenset((
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gcsfuse", "glusterfs", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs",
    "wekafs",
))
# fmt: on
MOUNTS = pathlib.Path("/proc/self/mountinfo")


def remote_kind(device: int) -> str | None:
    """``"nfs4"``, ``"fuse.sshfs"``, ... or None: local, or not known (other systems)."""
    try:
        table = MOUNTS.read_text(errors="replace")
    except OSError:
        return None
    wanted = f" {os.major(device)}:{os.minor(device)} "
    for line in table.splitlines():
        if wanted in line:  # "36 35 98:0 /root /mount options - type source options"
            kind = line.partition(" - ")[2].split(" ")[0]
            if kind in _REMOTE or kind == "fuse" or kind.startswith(("fuse.", "fuseblk")):
                return kind
    return None
