"""Unpack an archive that someone else made: regular files below one folder, and nothing else."""

import lzma
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from plm_depth.download import DownloadError

MOST_BYTES = 100 * 10**9  # unpacked; the largest checkpoint of the sheet of models has a third of it
MOST_MEMBERS = 10_000
BLOCK = 1 << 20


class NoRoomError(DownloadError):
    """The disk is too full for what the archive holds; nothing is wrong with the archive."""


def unpack(archive: Path, folder: Path, *, most_bytes: int = MOST_BYTES) -> None:
    """Unpack a tar archive (plain, gzip, bzip2, xz) into the new folder ``folder``; on any error the folder is removed.

    If everything lies in one folder of the archive, ``folder`` becomes that folder.

    Args:
        most_bytes: of all members together.
    Raises:
        DownloadError: not a whole tar archive; a member outside the folder, a link, a device, a name that comes twice;
            more than ``most_bytes`` or ``MOST_MEMBERS``; too little room. The member is named.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        _unpack(archive, folder, most_bytes)
        inside = list(folder.iterdir())
        if len(inside) == 1 and inside[0].is_dir():
            alone = folder.with_name(f"{folder.name}.inner")
            inside[0].rename(alone)
            folder.rmdir()
            alone.rename(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _unpack(archive: Path, folder: Path, most_bytes: int) -> None:
    seen: set[PurePosixPath] = set()
    n_bytes = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                where = f"{archive}: member {member.name!r}"
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise DownloadError(f"{where} would lie outside the folder: refused; get the archive elsewhere")
                if not member.isreg() and not member.isdir():
                    raise DownloadError(f"{where} is no regular file (a link or a device): refused")
                if member.isreg() and name in seen:
                    raise DownloadError(f"{where} comes twice: refused")
                seen.add(name)
                n_bytes += member.size
                if n_bytes > most_bytes or len(seen) > MOST_MEMBERS:
                    raise DownloadError(
                        f"{where}: at least {n_bytes} bytes in {len(seen)} members; expected at most {most_bytes} in "
                        f"{MOST_MEMBERS}: refused"
                    )
                free = shutil.disk_usage(folder).free
                if member.size > free:
                    raise NoRoomError(f"{where}: {free} bytes free, {member.size} needed; make room")
                tar.extract(member, folder, set_attrs=False, filter="data")
            # A tar ends before its compressed file does: only reading on to the end compares the checksum.
            while block := tar.fileobj.read(BLOCK):
                n_bytes += len(block)
                if n_bytes > most_bytes:
                    raise DownloadError(f"{archive}: more than {most_bytes} bytes unpacked: refused")
    except tarfile.FilterError as error:
        raise DownloadError(f"{archive}: {error}: refused") from error
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DownloadError(f"{archive}: not a whole tar archive ({type(error).__name__}: {error})") from error
    except OSError as error:
        if error.errno is not None:  # of the disk
            raise
        raise DownloadError(f"{archive}: not a whole tar archive ({type(error).__name__}: {error})") from error
    if not any(path.is_file() for path in folder.rglob("*")):
        raise DownloadError(f"{archive}: holds no file; expected config.json and weights")
