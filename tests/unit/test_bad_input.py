"""Bad input ends a stage in one message that names the file, the record and the mend, and leaves no part of an output.

Every case goes through the real door of its stage, ``main(argv)``; a sample of them through a process of its own.
"""

import bz2
import functools
import gzip
import importlib
import json
import lzma
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml

from plm_depth.tables import CLUSTERS, LEFT_OUT, SEQUENCES, write_table
from small_study import CONFIG, ROOT

FIXTURES = ROOT / "tests" / "fixtures"
MANY = b"".join(b">P%d\nMKTAYIAKQR\n" % i for i in range(5000))
PDB = (ROOT / "resources" / "mini" / "structures" / "1lcd_A.pdb").read_text()
CIF = (FIXTURES / "structures" / "1a8o.cif").read_text()
# What a message may say as its mend: what was expected, or what to do.
MENDS = re.compile(
    r"expected|fetch|download|correct|remove|lower|raise|give|make|name the one|choose|run |describe|write it|convert|"
    r"did you mean|known|use |cluster this|allowed|is this a checkpoint|meant for another|whole\?|there are:|save it|"
    r"add it|fill it|is its config.json that|its models:|its columns are|is this the wild type|; it has|"
    r"save it again|rename|write |yes or no|is not a (whole|finite) number",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Case:
    """One bad input: the stage, its options (``IN`` is the input's path, ``OUT`` an empty folder), and what is said."""

    stage: str
    options: tuple[str, ...]
    make: Callable[[Path], object]  # writes the input at the path
    says: tuple[str, ...]
    file: str = "input"
    names_file: bool = True
    status: object = str  # of SystemExit: a text is status 1; argparse ends with 2
    leaves: tuple[str, ...] = field(default=())  # what a rerun goes on with


CASES: dict[str, Case] = {}


def writes(data: bytes | str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode())


def absent(path: Path) -> None:
    pass


def case(name: str, *arguments: object, **options: object) -> None:
    assert name not in CASES
    CASES[name] = Case(*arguments, **options)


# ----------------------------------------------------------------------------------------------------------------
# FASTA, by sequences.sample


def fasta(name: str, make: bytes | Callable, *says: str, options: str = "--size 1", **more: object) -> None:
    asked = dict(zip(options.split()[::2], options.split()[1::2]))
    every = {"--size": "1", "--min-length": "1", "--max-length": "100", **asked}
    case(
        f"FASTA: {name}",
        "sequences.sample",
        (
            *("--fasta", "IN", "--seed", "1", "--sample", "OUT/s.parquet", "--left-out", "OUT/l.parquet"),
            *(word for pair in every.items() for word in pair),
        ),
        writes(make) if isinstance(make, bytes) else make,
        says,
        **more,
    )


def damaged(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 0xFF
    return bytes(changed)


fasta("no file", absent, "No such file")
fasta("a folder", Path.mkdir, "Is a directory")
fasta("empty", b"", "empty, expected at least one FASTA record")
fasta("white space only", b"\n \n\t\n", "empty")
fasta("residues without header", b"MKT\n>A\nMK\n", "not FASTA", "b'MKT")
fasta("a page of a web server", b"<!DOCTYPE html><html>404</html>", "not FASTA", "<!DOCTYPE")
fasta("a GenBank file", b"LOCUS       AAA\n", "not FASTA")
fasta("a FASTQ file", b"@A\nACGT\n+\nIIII\n", "not FASTA")
fasta("a zip file", b"PK\x03\x04" + b"x" * 50, "not FASTA", "gzip, bzip2 or xz")
fasta("UTF-16", ">A\nMKT\n".encode("utf-16"), "not FASTA", "plain text")
fasta("a byte order mark", b"\xef\xbb\xbf>A\nMKT\n", "byte order mark")
fasta("a comment line", b";comment\n>A\nMKT\n", "not FASTA")
fasta("a header without accession", b">A\nMK\n>\nMKT\n", "record 2", "no accession")
fasta("white space before the accession", b"> A\nMKT\n", "record 1", "no accession")
fasta("no residues", b">A\n>B\nMKT\n", "record 1: no residues", "remove it")
fasta("no residues in the last record", b">B\nMKT\n>A", "record 2: no residues")
fasta("a stop codon only", b">A\n*\n", "record 1: no residues")
fasta("carriage returns alone", b">A\rMKT\r>B\rMKV\r", "record 1", "carriage return alone", "convert")
fasta("a digit", b">A\nMKT\n>B\nMK1T\n", "record 2", "b'1' in the sequence")
fasta("a NUL among residues", b">A\nMK\x00T\n", "record 1", r"b'\x00' in the sequence")
fasta("letters beyond ASCII", ">A\nMKTé\n".encode(), "record 1", r"b'\xc3' in the sequence")
fasta("an accession that is no UTF-8", b">\xe9\nMKT\n", "record 1", "is not UTF-8 text")
fasta("a NUL in an accession", b">A\x00B\nMKT\n", "record 1", "printable ASCII characters")
fasta("an accession beyond ASCII", ">é\nMKT\n".encode(), "record 1", "printable ASCII characters")
fasta("an escape sequence in an accession", b">A\x1b[31m\nMKT\n", "record 1", "printable ASCII characters")
fasta("an accession of 100,000 characters", b">" + b"A" * 100_000 + b"\nMKT\n", "(100000 characters)", "at most 256")
fasta("an accession twice", b">A\nMKT\n>B\nMKV\n>A\nMKT\n", "record 1", "record 3", "accession A comes twice",
      options="--size 2")  # fmt: skip
fasta("odd letters only", b">A\nMKU\n>B\nMKX\n", "non_canonical 2")
fasta("too few records", b">A\nMKT\n", "1 of 1 records pass", "lower --size", options="--size 3")
fasta("all too short", b">A\nMKT\n", "too_short 1", options="--min-length 9")
fasta("a cut gzip file", gzip.compress(MANY)[:-200], "cut or damaged", "fetch it again")
fasta("garbage behind a gzip file", gzip.compress(MANY) + b"garbage", "cut or damaged")
fasta("a damaged gzip file", damaged(gzip.compress(MANY)), "cut or damaged")
fasta("an empty gzip file", gzip.compress(b""), "empty")
fasta("a cut bzip2 file", bz2.compress(MANY)[:-20], "cut or damaged")
fasta("a cut xz file", lzma.compress(MANY)[:-20], "cut or damaged")
fasta("size 0", b">A\nMKT\n", "--size 0", options="--size 0", names_file=False)
fasta("lengths the wrong way round", b">A\nMKT\n", "1 <= min <= max", options="--min-length 9 --max-length 3",
      names_file=False)  # fmt: skip

# ----------------------------------------------------------------------------------------------------------------
# PDB and mmCIF, by sequences.structures

LINES = PDB.splitlines(keepends=True)
ATOMS = [line for line in LINES if line.startswith("ATOM")]
FIRST = re.search(r"^ATOM .*$", CIF, re.MULTILINE).group(0)


def structure(name: str, make: bytes | str | Callable, *says: str, options: tuple = (), **more: object) -> None:
    outputs = ("--structures", "OUT/s.parquet", "--backbone", "OUT/b.parquet", "--fasta", "OUT/f.fasta")
    make = writes(make) if isinstance(make, bytes | str) else make
    case(f"structure: {name}", "sequences.structures", ("--files", "IN", *outputs, *options), make, says, **more)


def atom(columns: slice, text: str) -> str:
    changed = ATOMS[5][: columns.start] + text + ATOMS[5][columns.stop :]
    return PDB.replace(ATOMS[5], changed, 1)


def cif_atom(column: int, text: str) -> str:
    words = FIRST.split()
    return CIF.replace(FIRST, " ".join([*words[:column], text, *words[column + 1 :]]), 1)


def chains(**entry: object) -> tuple[str, str]:
    return ("--chains", json.dumps([{"structure": "x", "chain": None, **entry}]))


structure("no file", absent, "No such file")
structure("a folder", Path.mkdir, "Is a directory")
structure("empty", b"", "empty")
structure("a page of a web server", "<html>404</html>", "neither PDB nor mmCIF")
structure("bytes that are no text", b"\x00\x01\xff\xfe", "not text")
structure("a cut gzip file", gzip.compress(PDB.encode())[:-50], "cut or damaged")
structure("a cut PDB file", "".join(LINES[: len(LINES) // 2]), "no END record", "fetch it again")
structure("no atoms", "HEADER    X\nEND\n", "no ATOM records")
structure("a coordinate in letters", atom(slice(30, 38), "  abc   "), "coordinate", "line 9")
structure("a coordinate that is NaN", atom(slice(30, 38), "     nan"), "atom N", "position 1", "nan")
structure("a coordinate that is infinite", atom(slice(30, 38), "     inf"), "atom N", "inf")
structure("a coordinate beyond any structure", atom(slice(30, 38), "99999999"), "atom N", "finite coordinates")
structure("an atom line that is cut", PDB.replace(ATOMS[5], ATOMS[5][:40] + "\n", 1), "line 9")
structure("a residue number in letters", atom(slice(22, 26), "abcd"), "'abcd'", "(line 9)")
structure("an atom twice", PDB.replace(ATOMS[5], ATOMS[5] * 2, 1), "defined twice")
structure("a B factor in letters", atom(slice(60, 66), "  abc "), "B factor")
structure("CA atoms only", "".join(x for x in LINES if not x.startswith("ATOM") or x[12:16] == " CA "), "CA atoms only")
structure("no protein", f"{ATOMS[0][:12]} O   HOH{ATOMS[0][20:]}END\n", "no protein chain")
structure("no such chain", PDB, "no protein chain 'Q'; there are: 'A'", options=chains(chain="Q"))
structure("two chains and none named", PDB.replace("END", "".join(a[:21] + "B" + a[22:] for a in ATOMS) + "END"),
          "'A', 'B'; name the one")  # fmt: skip
structure("B factors that are no pLDDT", PDB, "are no pLDDT", options=("--confidence", "plddt"))
structure("an id that climbs out", PDB, "'../../x'", options=chains(structure="../../x"), names_file=False)
structure("an id with a command", PDB, "'$(touch x)'", options=chains(structure="$(touch x)"), names_file=False)
structure("an id with a line end", PDB, r"'a\n'", options=chains(structure="a\n"), names_file=False)
structure("an id with a NUL", PDB, r"'a\x00'", options=chains(structure="a\x00"), names_file=False)
structure("an id of 5,000 letters", PDB, "up to 128", options=chains(structure="a" * 5000), names_file=False)
structure("chains that are no JSON", PDB, "not JSON", options=("--chains", "{x"), names_file=False)
structure("chains nested without end", PDB, "too deeply", options=("--chains", "[" * 99_999), names_file=False)
structure("a cut mmCIF file", CIF[: len(CIF) // 2], "the file is not whole", "fetch it again")
structure("an mmCIF file without atoms", "data_x\n", "no column _atom_site.group_PDB")
structure("a text that does not end in mmCIF", CIF + "\n;text\n", "or cut")
structure("a coordinate in letters in mmCIF", cif_atom(10, "abc"), "atom N of MSE 1", "'abc'")
structure("a coordinate that is NaN in mmCIF", cif_atom(10, "nan"), "atom N", "nan")
structure("a place beyond the sequence in mmCIF", cif_atom(8, "999"), "does not fit the 70 residues")
structure("a place in letters in the sequence", re.sub(r"(?m)^1 1  MSE n", "1 x  MSE n", CIF, count=1), "num 'x'")

# ----------------------------------------------------------------------------------------------------------------
# Checkpoint folders and safetensors headers, by models.describe


def checkpoint(
    name: str, change: Callable[[Path], object], *says: str, family: str = "esm2", options: tuple = (), **more: object
) -> None:
    source = FIXTURES / (family if family in ("esm2", "dplm") else "esm2") / "hub"

    def make(path: Path) -> None:
        shutil.copytree(source, path)
        change(path)

    asked = ("--model", "m", "--family", family, "--folder", "IN", "--output", "OUT/card.json", *options)
    case(f"checkpoint: {name}", "models.describe", asked, make, says, **more)


def configured(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        raw = {**json.loads((folder / "config.json").read_text()), **values}
        (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v is not KeyError}))

    return change


def rewritten(name: str, function: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(function((folder / name).read_bytes()))


def weights(function: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return rewritten("model.safetensors", function)


TENSOR = "esm.encoder.layer.0.attention.self.query.weight"


def header(function: Callable[[dict], object]) -> Callable[[Path], object]:
    """Change the header of the weights; the tensors' bytes stay."""

    def change(data: bytes) -> bytes:
        size = struct.unpack("<Q", data[:8])[0]
        about = json.loads(data[8 : 8 + size])
        text = function(about)
        text = json.dumps(about).encode() if not isinstance(text, bytes) else text
        return struct.pack("<Q", len(text)) + text + data[8 + size :]

    return weights(change)


def sharded(**index: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def pickled(value: object) -> Callable[[Path], object]:
    return lambda folder: torch.save(value, folder / "pytorch_model.bin")


class Command:
    """An object whose unpickling runs a command."""

    def __reduce__(self):
        return os.system, ("touch /nowhere/it-ran",)


checkpoint("no folder", shutil.rmtree, "no such file")
checkpoint("no config", lambda d: (d / "config.json").unlink(), "config.json: no such file")
checkpoint("no weights", lambda d: (d / "model.safetensors").unlink(), "neither model.safetensors nor",
           "it has ['config.json'")  # fmt: skip
checkpoint("a cut config", rewritten("config.json", lambda b: b[:50]), "config.json: not readable as JSON")
checkpoint("a config that is a list", rewritten("config.json", lambda b: b"[1]"), "it holds list")
checkpoint("a config that is no text", rewritten("config.json", lambda b: b"\xff\xfe\0"), "not readable as JSON")
checkpoint("a config nested without end", rewritten("config.json", lambda b: b"[" * 99_999), "not readable as JSON")
checkpoint("another model_type", configured(model_type="gpt2"), "model_type is 'gpt2', but esm2 has 'esm'")
checkpoint("no model_type", configured(model_type=KeyError), "model_type is None")
checkpoint("a width in letters", configured(hidden_size="big"), "config.json: hidden_size is 'big'")
checkpoint("a negative width", configured(hidden_size=-5), "hidden_size is -5")
checkpoint("a width that is NaN", configured(hidden_size=float("nan")), "hidden_size is nan")
checkpoint("a billion blocks", configured(num_hidden_layers=10**9), "num_hidden_layers is 1000000000")
checkpoint("a width for more memory than there is", configured(hidden_size=10**5), "5 blocks of width 100000", "whole?")
checkpoint("half a block", configured(num_hidden_layers=2.5), "num_hidden_layers is 2.5")
checkpoint("fewer blocks than weights", configured(num_hidden_layers=1), "unexpected: esm.encoder.layer.1")
checkpoint("no number of blocks", configured(num_hidden_layers=KeyError), "no 'num_hidden_layers'")
checkpoint("heads that do not divide the width", configured(num_attention_heads=7), "heads (7)", "config.json that of")
checkpoint("no heads", configured(num_attention_heads=0), "num_attention_heads is 0")
checkpoint("another vocabulary", configured(vocab_size=30), "vocab_size is 30")
checkpoint("empty weights", weights(lambda b: b""), "model.safetensors: not a readable safetensors file")
checkpoint("weights of five bytes", weights(lambda b: b[:5]), "not a readable safetensors file")
checkpoint("cut weights", weights(lambda b: b[:-100]), "not a readable safetensors file", "download it again")
checkpoint("a header longer than the file", weights(lambda b: struct.pack("<Q", 2**60) + b[8:]), "not a readable")
checkpoint("random bytes for weights", weights(lambda b: bytes(range(256)) * 4), "not a readable safetensors file")
checkpoint("a pointer of git for weights", weights(lambda b: b"version https://git-lfs.github.com/spec/v1\noid"),
           "not a readable safetensors file")  # fmt: skip
checkpoint("a header that is a list", header(lambda h: b"[1,2]   "), "not a readable safetensors file")
checkpoint("a tensor missing", header(lambda h: h.pop(TENSOR)["dtype"] and None), "not a readable")
checkpoint("a tensor of another name", header(lambda h: h.__setitem__("odd.weight", h.pop(TENSOR))),
           f"missing: {TENSOR}", "unexpected: odd.weight")  # fmt: skip
checkpoint("a tensor of another shape", header(lambda h: h[TENSOR].__setitem__("shape", [16, 64])),
           f"{TENSOR} has shape (16, 64), expected (32, 32)")  # fmt: skip
checkpoint("a tensor of an unknown dtype", header(lambda h: h[TENSOR].__setitem__("dtype", "F99")), "not a readable")
checkpoint("a tensor of whole numbers", header(lambda h: h[TENSOR].__setitem__("dtype", "I32")), "holds int32")
checkpoint("a tensor beyond the file", header(lambda h: h[TENSOR].__setitem__("data_offsets", [0, 10**12])), "readable")
checkpoint("a weight that is NaN", weights(lambda b: b[:-4] + struct.pack("<f", float("nan"))), "holds NaN or inf")
checkpoint("a weight that is infinite", weights(lambda b: b[:-4] + struct.pack("<f", float("inf"))), "NaN or inf")
checkpoint("an index of a shard that is not there", sharded(weight_map={"a": "gone.safetensors"}), "names ['gone")
checkpoint("an index that climbs out", sharded(weight_map={"a": "../../etc/passwd"}), "not names of files")
checkpoint("an index without map", sharded(metadata={}), "no 'weight_map'")
checkpoint("an index of other tensors", sharded(weight_map={"a": "model-1.safetensors"}), "lists 1 tensors")
checkpoint("another family", lambda d: None, "model_type is 'esm', but ProGen2", family="progen2")
checkpoint(
    "an unknown family", lambda d: None, "unknown family 'esm9'", "did you mean", family="esm9", names_file=False
)
checkpoint("an unknown dtype", lambda d: None, "dtype 'float8'", options=("--dtype", "float8"), names_file=False)
checkpoint("a manifest that is cut", lambda d: (d / "plm_depth_download.json").write_text("{"), "not the manifest")
checkpoint("weights that changed since their download",
           lambda d: (d / "plm_depth_download.json").write_text(json.dumps(
               {"repo": "a/b", "revision": "c", "files": {"model.safetensors": {"bytes": 3, "sha256": "0" * 64}}})),
           "model.safetensors: changed since it was fetched")  # fmt: skip
checkpoint("a cut pickle", rewritten("pytorch_model.bin", lambda b: b[:-50]), "not a readable PyTorch", family="dplm")
checkpoint("an empty pickle", rewritten("pytorch_model.bin", lambda b: b""), "not a readable PyTorch", family="dplm")
checkpoint("a pickle with a command", rewritten("pytorch_model.bin", lambda b: pickle.dumps({"a": Command()})),
           "refused", "can run code", family="dplm")  # fmt: skip
checkpoint("a pickle of a list", pickled([torch.zeros(2)]), "it holds list", family="dplm")
checkpoint("a pickle of numbers", pickled({"a": 3}), "a are none", family="dplm")

# ----------------------------------------------------------------------------------------------------------------
# The sheet of models and the config, by preflight, which resolves them as the workflow does

SHEET = (ROOT / "config" / "models.tsv").read_text()
COLUMNS = next(line for line in SHEET.splitlines() if line.startswith("model\t"))


def configs(name: str, change: Callable[[dict, Path], object], *says: str, **more: object) -> None:
    def make(path: Path) -> None:
        config = yaml.safe_load(CONFIG)
        config["sources"][0]["url"] = str(ROOT / "resources" / "mini" / "sequences.fasta")
        config["models_sheet"] = str(path.parent / "models.tsv")
        text = change(config, path.parent)
        path.write_bytes(text if isinstance(text, bytes) else yaml.safe_dump(config).encode())

    options = ("--config", "IN", "--offline")
    case(f"config: {name}", "preflight", options, make, says, names_file=False, file="study.yaml", **more)


def sheet(name: str, text: str | bytes, *says: str) -> None:
    def change(config: dict, folder: Path) -> None:
        (folder / "models.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
        config["models"] = ["mine"]

    configs(f"models.tsv: {name}", change, *says)


def row(**cells: str) -> str:
    known = {"model": "mine", "display_name": "Mine", "family": "esm2", "hub": "a/b", "gated": "no", **cells}
    return f"{COLUMNS}\n" + "\t".join(known.get(name, "") for name in COLUMNS.split("\t")) + "\n"


def at(path: str, value: object) -> Callable[[dict, Path], object]:
    def change(config: dict, folder: Path) -> None:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place = config
        for part in parents:
            place = place[part]
        place[last] = value

    return change


sheet("empty", "", "models.tsv: no column 'model'")
sheet("no text", b"\xff\xfe\x00", "models.tsv: not UTF-8 text")
sheet("an unknown column", row().replace("hub", "hubb", 1), "unknown column 'hubb'; did you mean 'hub'?")
sheet("a cell too few", COLUMNS + "\nmine\tMine\n", "row 1 has not 21 cells")
sheet("a cell too many", row().rstrip("\n") + "\tx\n", "row 1 has not 21 cells")
sheet("a model twice", row() + row().splitlines()[1] + "\n", "model mine stands twice")
sheet("an id that climbs out", row(model="../../x"), "'../../x' does not fit; expected letters, digits")
sheet("an id with a command", row(model="$(touch x)"), "'$(touch x)' does not fit")
sheet("a repository that climbs out", row(hub="../../x"), "hub: '../../x' does not fit; expected organisation/name")
sheet("a commit that is a command", row(revision="$(touch x)"), "revision: '$(touch x)'", "40 hexadecimal digits")
sheet("a size in letters", row(n_blocks="many"), "n_blocks: 'many' is not a whole number")
sheet("yes and no in other words", row(gated="perhaps"), "gated: 'perhaps'")
sheet("a digest that is none", row(sha256="model.safetensors=abc"), "sha256: 'model.safetensors=abc'")
sheet("neither repository nor archive", row(hub=""), "give exactly one of hub, archive; found none")
sheet("an archive by another way", row(hub="", archive="ftp://x/y.tar"), "archive: 'ftp://x/y.tar' does not fit")
sheet("a licence to accept that is not named", row(gated="yes"), "must be accepted first", "licence is empty")
sheet("another model than is asked for", row(model="yours"), "no model 'mine'")
sheet("a family that is unknown", row(family="esm9"), "no family 'esm9'; did you mean")
configs("no sheet", at("models", ["mine"]), "models.tsv does not exist")
configs("no YAML", lambda config, folder: b"study: [", "not a readable YAML file")
configs("no text", lambda config, folder: b"\xff\xfe\x00", "not a readable YAML file")
configs("a list", lambda config, folder: b"[1, 2]", "is not a mapping")
configs("nothing", lambda config, folder: b"", "is not a mapping")
configs("a study that climbs out", at("study", "../../x"), "study: '../../x' does not fit")
configs("a study with a command", at("study", "$(touch x)"), "study: '$(touch x)' does not fit")
configs("a study with a line end", at("study", "a\nb"), "study: 'a\\nb' does not fit")
configs("a study that ends in a line end", at("study", "a\n"), "study: 'a\\n' does not fit")
configs("a data set that climbs out", at("datasets.0.name", ".."), "datasets[0].name: '..' does not fit")
configs("a source that climbs out", at("sources.0.name", "a/b"), "sources[0].name: 'a/b' does not fit")
configs("a model that climbs out", at("models.0.model", "../x"), "models[0].model: '../x' does not fit")
configs("a download that climbs out", at("sources.0.url", "https://host/.."), "sources.mini.url", "a file name")
configs("a download with a command", at("sources.0.url", "https://host/$(touch x)"), "sources.mini.url", "a file name")
configs("two downloads of one name", at("sources", [
    {"name": "mini", "url": "https://a/x.fasta"}, {"name": "other", "url": "https://b/x.fasta"}]),
    "end in the same name")  # fmt: skip
configs("noise that is NaN", at("inputs.mlm.noise", [float("nan")]), "inputs.mlm.noise[0]: nan")
configs("an unknown key", at("sede", 1), "sede: unknown key; did you mean 'seed'?")

# ----------------------------------------------------------------------------------------------------------------
# Tables, cards and options of later stages


def tabled(name: str, make: Callable[[Path], object] | bytes, *says: str, stage: str, options: str, **more) -> None:
    make = writes(make) if isinstance(make, bytes) else make
    case(f"table: {name}", stage, tuple(options.split()), make, says, **more)


def sequences(path: Path) -> None:
    columns = {"sequence_id": ["A"], "sequence_hash": ["0"], "rank": [0], "n_residues": [3], "sequence": ["MKT"]}
    write_table(columns, SEQUENCES, path)


def spoiled(function: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        sequences(path)
        path.write_bytes(function(path.read_bytes()))

    return make


def other_table(path: Path) -> None:
    write_table({"reason": ["sampled"], "n_records": [1]}, LEFT_OUT, path)


SHARD = "--sample IN --first 0 --last 1 --output OUT/o.parquet"
for _name, _make, _says in (
    ("no file", absent, "no such file"),
    ("empty", b"", "not a readable Parquet file"),
    ("no table", b"PAR1garbage", "not a readable Parquet file"),
    ("cut", spoiled(lambda b: b[:-100]), "not a readable Parquet file"),
    ("a byte changed", spoiled(lambda b: b[:30] + bytes([b[30] ^ 255]) + b[31:]), "not a readable Parquet file"),
    ("of another kind", other_table, "no column 'sequence_id'"),
):
    tabled(_name, _make, _says, stage="sequences.shard", options=SHARD)
tabled("a range beyond it", sequences, "the sample has 1 proteins", stage="sequences.shard",
       options=SHARD.replace("--last 1", "--last 9"))  # fmt: skip
tabled("a range the wrong way round", sequences, "first < last", stage="sequences.shard",
       options=SHARD.replace("--first 0", "--first 9"))  # fmt: skip
tabled("an identity above 1", sequences, "--identity 3.0", stage="sequences.cluster",
       options="--sample IN --identity 3 --coverage 0.5 --output OUT/o.parquet")  # fmt: skip
tabled("moments of another kind", other_table, "not a vector table", stage="metrics.contributions",
       options="--moments IN --output OUT/o.parquet")  # fmt: skip
tabled("a page for lens", b"<html>", "not a readable Parquet", stage="metrics.lens",
       options="--logits IN --output OUT/o.parquet")  # fmt: skip
tabled("left-out records of another kind", sequences, "no column 'reason'", stage="figures.records",
       options="--left-out IN --clusters IN --letters IN --policies {} --letters-csv OUT/l --letters-html OUT/h "
       "--dataset d --size 1 --csv OUT/c.csv --html OUT/h.html")  # fmt: skip
tabled("a card that is none", b"{}", "not the card of a checkpoint", stage="models.listing",
       options='--models [{"model":"m","family":"esm2"}] --cards IN --output OUT/m.json')  # fmt: skip
tabled("models that are no list", b"{}", "JSON list", stage="models.listing", names_file=False,
       options='--models {"a":1} --cards IN --output OUT/m.json')  # fmt: skip


def card(path: Path, **changes: object) -> None:
    about = {
        **{"model_id": "m", "family": "esm2", "objective": "mlm", "folder": str(FIXTURES / "esm2" / "hub")},
        **{"files": [], "revision": "local", "dtype": "float32", "n_blocks": 5, "d_model": 32, "n_parameters": 1},
        **{"n_vocabulary": 33, "max_residues": 1022, "directions": ["none"], "self_check": 0.0, "versions": {}},
    }
    path.write_text(json.dumps({**about, **changes}))
    sequences(path.parent / "sequences.parquet")


def extracts(name: str, *says: str, changes: dict | None = None, names_file: bool = False, **options: str) -> None:
    given = {
        **{"card": "IN", "sequences": "DIR/sequences.parquet", "nulls": '[{"null_model":"trained","seed":-1}]'},
        **{"inputs": '{"mlm":{"noise":[0.15],"draws":1,"clean":false}}', "seed": "1", "token-budget": "1000"},
        **{"device": "cpu", "moments": "OUT/m", "lens": "OUT/l", "stream": "OUT/s", **options},
    }
    words = tuple(word for key, value in given.items() for word in (f"--{key}", value))
    make = functools.partial(card, **(changes or {}))
    case(f"passes: {name}", "activations.extract", words, make, says, names_file=names_file)


def mlm(**changes: object) -> str:
    return json.dumps({"mlm": {"noise": [0.15], "draws": 1, "clean": False, **changes}})


extracts("null models that are no JSON", "--nulls: expected a JSON list", nulls="[{")
extracts("null models nested without end", "--nulls: expected a JSON list", "(99999 characters)", nulls="[" * 99_999)
extracts("an unknown null model", "null model 'x': expected one of", nulls='[{"null_model":"x","seed":1}]')
extracts("a seed in letters", "seed 'a' of randinit", nulls='[{"null_model":"randinit","seed":"a"}]')
extracts("inputs that are no JSON", "--inputs: expected a JSON object", inputs="{")
extracts("inputs of another objective", "--inputs", "'mlm'", inputs='{"ar":{"directions":["n2c"]}}')
extracts("more masked than there is", "noise 7; expected shares", inputs=mlm(noise=[7]))
extracts("noise that is NaN", "NaN is no JSON", inputs=mlm(noise=[float("nan")]))
extracts("fewer than no draws", "draws -1; expected a whole number", inputs=mlm(draws=-1))
extracts("an unknown device", "--device tpu: expected", device="tpu")
extracts("a token budget of nothing", "token budget 0", **{"token-budget": "0"})
extracts("a card of another shape", "'n_blocks' should be a int", changes={"n_blocks": "x"}, names_file=True)
extracts("a card with nameless files", "'files' should list", changes={"files": ["x"]}, names_file=True)
extracts("a card whose weights are gone", "x: gone since m was described", changes={"files": [
    {"name": "x", "bytes": 1, "sha256": "0"}]})  # fmt: skip

# ----------------------------------------------------------------------------------------------------------------
# Tables of labels and assays, by sequences.labels and sequences.assays

LABELLED = "sequence,score\nMKTAYIAKQR,0.5\nMKTAYIAKQV,1.5\nMKTAYIAKQL,2.5\nGSHMLEDPVR,0.1\n"


def labels(name: str, text: str | bytes, *says: str, options: tuple = (), **more: object) -> None:
    asked = ("--table", "IN", "--label", "score", "--sequences", "OUT/s.parquet", "--labels", "OUT/l.parquet", *options)
    make = writes(text) if isinstance(text, bytes | str) else text
    case(f"labels: {name}", "sequences.labels", asked, make, says, file="table.csv", **more)


labels("no file", absent, "table.csv")
labels("empty", "", "table.csv")
labels("a header alone", "sequence,score\n", "table.csv")
labels("no text", b"\xff\xfe\x00s", "table.csv")
labels("no such column", "protein,score\nMKT,1\n", "sequence")
labels("no label column", "sequence,value\nMKT,1\n", "score")
labels("a column twice", "sequence,score,score\nMKT,1,2\n", "score")
labels("a cell too many", LABELLED + "MKV,1,2\n", "table.csv")
labels("a sequence with a digit", LABELLED + "MK1,0.5\n", "table.csv")
labels("a sequence with two labels", LABELLED + "MKTAYIAKQR,0.7\n", "table.csv")
labels("few rows", "sequence,score\nMKTAY,1\nMKTAV,2\nMKTAL,3\n", "3 usable rows", "at least 20")
labels("text for a regression", LABELLED + "MKTAYI,high\n", "table.csv", options=("--kind", "regression"))
labels("a cut gzip file", gzip.compress(LABELLED.encode() * 99)[:-20], "table.csv")
labels("no wild type", "mutant,score\nA1C,1\n", "wild", options=("--mutant", "mutant"), names_file=False)


def assay(name: str, text: str | bytes, *says: str, entry: dict | str | None = None, **more: object) -> None:
    def make(path: Path) -> None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        (path.parent / "wildtypes.fasta").write_text(">WT\nMKTAYIAKQR\n")

    given = {
        **{"format": "table", "assay_id": "A", "uniprot_id": "U", "category": "C", "variants": "IN"},
        **{"mutant": "mutant", "score": "score", "wildtypes": "DIR/wildtypes.fasta", "wildtype": "WT"},
        **(entry if isinstance(entry, dict) else {}),
    }
    words = ("--assays", "JSON:" + (entry if isinstance(entry, str) else json.dumps([given])), "--seed", "1")
    words += ("--shards", "OUT/0.parquet", "--counts", "OUT/c.parquet")
    case(f"assay: {name}", "sequences.assays", words, make, says, file="assay.csv", **more)


VARIANTS = "mutant,score\nM1A,0.5\nK2C,1.5\n"
assay("empty", "", "assay.csv")
assay("a header alone", "mutant,score\n", "none of its 0 rows")
assay("no such column", "variant,score\nM1A,1\n", "mutant")
assay("no text", b"\xff\xfe\x00", "assay.csv")
assay("no readable variant", "mutant,score\nxyz,1\n", "malformed 1")
assay("another wild type", "mutant,score\nW1A,1\n", "wildtype_mismatch 1")
assay("no such wild type", VARIANTS, "OTHER", entry={"wildtype": "OTHER"}, names_file=False)
assay("no JSON", VARIANTS, "--assays", entry="{", names_file=False)
assay("no list", VARIANTS, "--assays", entry="{}", names_file=False)
assay("an unknown format", VARIANTS, "format", entry={"format": "xyz"}, names_file=False)
assay("no scores", "mutant,score\nM1A,\nK2C,nan\n", "no_score 2")

# ----------------------------------------------------------------------------------------------------------------
# Downloads


def fetches(name: str, stage: str, options: str, *says: str, make: Callable = absent, **more: object) -> None:
    case(f"download: {name}", stage, tuple(options.split("|")), make, says, **more)


fetches("another way than http", "sequences.download", "--url|ftp://x/y|--output|OUT/f", "not ftp://", names_file=False)
fetches("a file that is not there", "sequences.download", "--url|IN|--output|OUT/f", "No such file")
fetches("another digest", "sequences.download", f"--url|IN|--sha256|{'0' * 64}|--output|OUT/f", "wrong file",
        make=writes(b"x"))  # fmt: skip
fetches("a digest that is none", "sequences.download", "--url|IN|--sha256|xyz|--output|OUT/f", "64 hexadecimal digits",
        names_file=False)  # fmt: skip
fetches("a repository that climbs out", "models.download", "--repo|../../x|--output|OUT/f|--attempts|1|--timeout|1",
        "no name of a repository", names_file=False)  # fmt: skip
fetches("digests that are none", "models.download", "--repo|a/b|--sha256|nonsense|--output|OUT/f", "'nonsense'",
        names_file=False)  # fmt: skip
fetches("an archive that is none", "models.download", "--archive|IN|--output|OUT/f", "not a whole tar archive",
        make=writes(b"x" * 100))  # fmt: skip
fetches("a folder that was not fetched", "models.download", "--check|IN", "no such file", make=Path.mkdir)


# ----------------------------------------------------------------------------------------------------------------


def prepared(one: Case, folder: Path) -> list[str]:
    path, out = folder / one.file, folder / "out"
    out.mkdir()
    one.make(path)
    places = {"IN": str(path), "OUT": str(out), "DIR": str(folder)}

    def placed(word: str) -> str:
        if word.startswith("JSON:"):
            return re.sub(r'"(IN|DIR)\b', lambda found: f'"{places[found[1]]}', word.removeprefix("JSON:"))
        return re.sub(r"^(IN|OUT|DIR)\b", lambda found: places[found[1]], word)

    return [placed(word) for word in one.options]


def left_over(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*"))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_ends_in_one_message_that_names_file_record_and_mend_and_leaves_nothing(name, tmp_path, monkeypatch):
    one = CASES[name]
    argv = prepared(one, tmp_path)
    if one.stage == "preflight":
        monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"plm_depth.{one.stage}").main(argv)
    said = ended.value.code
    assert isinstance(said, str), "a text: exit status 1, and the text is all that is printed"
    for words in one.says:
        assert words in said
    assert not one.names_file or one.file in said, said
    assert MENDS.search(said), said
    assert "Traceback" not in said and len(said) < 1500
    assert left_over(tmp_path) == []


def test_every_kind_of_input_has_its_cases():
    kinds = Counter(name.split(":")[0] for name in CASES)
    least = {
        "FASTA": 30,
        "structure": 30,
        "checkpoint": 40,
        "config": 30,
        "table": 12,
        "passes": 12,
        "download": 8,
        "labels": 14,
        "assay": 11,
    }
    assert all(kinds[kind] >= n for kind, n in least.items()), kinds


PROCESSES = [
    "FASTA: a digit",
    "structure: a coordinate in letters",
    "config: a study that climbs out",
    "table: cut",
    "download: another digest",
    "checkpoint: cut weights",
]


@pytest.mark.parametrize("name", PROCESSES)
def test_a_process_of_its_own_ends_with_status_1_and_without_traceback(name, tmp_path):
    one = CASES[name]
    command = [sys.executable, "-m", f"plm_depth.{one.stage}", *prepared(one, tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    for words in one.says:
        assert words in ended.stderr.splitlines()[-1] or words in ended.stderr
    assert left_over(tmp_path) == []


def test_a_table_of_clusters_of_other_proteins_is_named_with_the_mend(tmp_path):
    sequences(tmp_path / "sample.parquet")
    write_table({"sequence_id": ["B"], "cluster_id": ["B"]}, CLUSTERS, tmp_path / "clusters.parquet")
    with pytest.raises(SystemExit, match=r"clusters.parquet: not the clusters of .*cluster this sample"):
        importlib.import_module("plm_depth.sequences.split").main(
            f"--sample {tmp_path}/sample.parquet --clusters {tmp_path}/clusters.parquet --held-out 0.5 --seed 1 "
            f"--train {tmp_path}/out/t --valid {tmp_path}/out/v".split()
        )
    assert not list(tmp_path.glob("out/*"))
