"""Which structures a study uses: its config's entries, checked, with the address and the path of each file.

An entry is ``ID`` or ``ID:CHAIN``. An id is checked against a strict pattern before it becomes part of a path or an
address, so that no config can reach outside the folder of downloads.
"""

import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from plm_depth.sequences import SourceError

URLS = {
    "pdb": "https://files.rcsb.org/download/{id}.cif.gz",
    "alphafold": "https://alphafold.ebi.ac.uk/files/AF-{id}-F1-model_v6.cif",
}
DOWNLOADS = "resources/downloads/structures"
STRUCTURE_FILES = re.compile(r"\.(pdb|ent|cif|mmcif)(\.gz)?$")
_IDS = {
    "pdb": (re.compile(r"[1-9][A-Za-z0-9]{3}"), "a PDB id of four characters such as 1a7g"),
    "alphafold": (
        re.compile(r"[OPQ][0-9][A-Z0-9]{3}[0-9]|[A-NR-Z][0-9](?:[A-Z][A-Z0-9]{2}[0-9]){1,2}"),
        "a UniProt accession such as P69905",
    ),
    "folder": (
        re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"),
        "a file name without its extension: letters, digits, '.', '_' and '-'",
    ),
}
_CHAIN = re.compile(r"[A-Za-z0-9]{1,4}")


@dataclass(frozen=True)
class Entry:
    """One structure.

    Attributes:
        structure_id: entry and chain (``1a7g_E``), accession, or file name.
        chain: the author's id, None: the only protein chain.
        path: where the file lies, or will lie after its download.
        url: its address; None: the file is there.
        sha256: expected digest of the file, None: not checked.
    """

    structure_id: str
    chain: str | None
    path: str
    url: str | None
    sha256: str | None


def parse_entry(text: str, source: str) -> tuple[str, str | None]:
    """Return id and chain (None: not named) of an entry; PDB ids in lower case.

    Raises:
        SourceError: not an id of this source, or not a chain.
    """
    name, colon, chain = str(text).partition(":")
    pattern, meant = _IDS[source]
    if not pattern.fullmatch(name):
        raise SourceError(f"{text!r}: expected {meant}, and :CHAIN if a chain is meant")
    if colon and not _CHAIN.fullmatch(chain):
        raise SourceError(f"{text!r}: {chain!r} is no chain; expected one to four letters or digits after the colon")
    return name.lower() if source == "pdb" else name, chain or None


def entries_of(section: Mapping[str, object], root: str | Path = ".") -> list[Entry]:
    """Return the structures of a config's section ``structures``, in its order.

    Args:
        section: ``source`` (pdb, alphafold or folder); ``folder`` for the last; ``entries`` (for a folder: all its
            files by default); ``url``, an address with {id} in it; ``sha256``, digests by id.
        root: folder that relative paths of the config are relative to.

    Raises:
        SourceError: all that is wrong, one line a problem.
    """
    source, digests = section["source"], dict(section.get("sha256") or {})
    files: dict[str, str] = {}
    lines, found = [], []
    if source == "folder":
        if "url" in section:
            lines.append("structures.url: a folder has no address; remove it, or set source to pdb or alphafold")
        folder = section.get("folder")
        if folder is None or not (Path(root) / folder).is_dir():
            raise SourceError(f"structures.folder: no folder {folder!r}; expected one with PDB or mmCIF files")
        for path in sorted((Path(root) / folder).iterdir()):
            if STRUCTURE_FILES.search(path.name):
                name = STRUCTURE_FILES.sub("", path.name)
                if name in files:
                    lines.append(f"structures.folder: {folder} holds {name} twice ({files[name]}, {path.name})")
                files[name] = path.name
        if not files:
            lines.append(f"structures.folder: no *.pdb, *.ent or *.cif, gzipped or not, in {folder}")
        template = None
    else:
        if "folder" in section:
            lines.append(f"structures.folder: only with source folder, not with {source}")
        template = section.get("url", URLS[source])
        if len(re.findall(r"[{}]", template)) != 2 or template.count("{id}") != 1:
            lines.append(f"structures.url: {template!r}; expected an address with {{id}} in it, once")
        elif urllib.parse.urlsplit(template).scheme not in ("http", "https", "file"):
            lines.append(f"structures.url: {template!r}; expected https://, http:// or file://")
    wanted = section.get("entries", list(files) if source == "folder" else [])
    if source != "folder" and not wanted:
        lines.append(f"structures.entries: missing; name what to fetch: {_IDS[source][1]}")
    if lines:
        raise SourceError("\n".join(lines))
    ids = set()
    for text in wanted:
        try:
            name, chain = parse_entry(text, source)
        except SourceError as error:
            lines.append(f"structures.entries: {error}")
            continue
        ids.add(name)
        if template is None and name not in files:
            lines.append(f"structures.entries: no file of {name!r} in {section['folder']}")
            continue
        url = None if template is None else template.replace("{id}", name)
        path = (
            f"{section['folder']}/{files[name]}"
            if url is None
            else f"{DOWNLOADS}/{PurePosixPath(urllib.parse.urlsplit(url).path).name}"
        )
        found.append(Entry(f"{name}_{chain}" if chain else name, chain, path, url, digests.get(name)))
    seen = set()
    for entry in found:
        if entry.structure_id in seen:
            lines.append(f"structures.entries: {entry.structure_id} stands twice")
        seen.add(entry.structure_id)
    lines += [f"structures.sha256: {name!r} is no id of the entries" for name in digests if name not in ids]
    by_path: dict[str, str | None] = {}
    for entry in found:
        if by_path.setdefault(entry.path, entry.url) != entry.url:
            lines.append(f"structures.url: the addresses of different entries end in the same name, {entry.path}")
    if lines:
        raise SourceError("\n".join(dict.fromkeys(lines)))
    return found
