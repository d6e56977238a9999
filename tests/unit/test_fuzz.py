"""Whatever bytes a file holds and whatever text an option has: a parser returns, or says what is wrong in a message.

Each property runs for a bounded number of examples, together about a minute; the examples are the same in every run.
"""

import dataclasses
import json
import re
import struct
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plm_depth import json_text
from plm_depth.activations.effects import Skips
from plm_depth.activations.nulls import Null, NullError, parse_nulls
from plm_depth.activations.settings import SettingsError, read_settings
from plm_depth.config import ConfigError, read_models
from plm_depth.download import DownloadError
from plm_depth.models import checkpoints, manifest
from plm_depth.models.archives import unpack
from plm_depth.models.base import CheckpointError
from plm_depth.models.download import File, choose
from plm_depth.sequences import SourceError
from plm_depth.sequences.accessions import entries_of, parse_entry
from plm_depth.sequences.fasta import raw_batches
from plm_depth.sequences.sample import draw
from plm_depth.sequences.structure_files import read_chain
from plm_depth.tables import AMINO_ACIDS, LEFT_OUT, SEQUENCES, TableError, read_table, write_table
from plm_depth.training.recipe import RecipeError, read_recipe
from plm_depth.views import View, views_of
from small_study import CONFIG, ROOT, resolved

FIXTURES = ROOT / "tests" / "fixtures"
PDB = "".join((ROOT / "resources" / "mini" / "structures" / "1lcd_A.pdb").read_text().splitlines(keepends=True)[:60])
PDB = PDB[: PDB.rindex("ATOM")] + "END\n"
CIF = (FIXTURES / "structures" / "1a8o.cif").read_bytes()
HOSTILE = st.sampled_from(
    [
        "../../x",
        "..",
        ".",
        "/etc/passwd",
        "$(touch x)",
        "`touch x`",
        "a;b",
        "a|b",
        "a\nb",
        "a\0b",
        "a" * 5000,
        "-rf",
        "~",
        "",
    ]
)
TEXT = st.one_of(HOSTILE, st.text(max_size=20))


def fuzzed(n: int):
    """Run ``n`` examples, the same each time; files are written again for each."""
    return settings(
        max_examples=n,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def damages(data: bytes) -> st.SearchStrategy[bytes]:
    """Return a file with a few bytes changed, inserted or removed, or cut."""
    change = st.tuples(st.integers(0, max(len(data) - 1, 0)), st.sampled_from("xid"), st.binary(min_size=1, max_size=4))

    def apply(changes: list, cut: int | None) -> bytes:
        out = bytearray(data)
        for at, how, new in changes:
            if how == "x":
                out[at : at + len(new)] = new
            elif how == "i":
                out[at:at] = new
            else:
                del out[at : at + len(new)]
        return bytes(out if cut is None else out[:cut])

    return st.builds(apply, st.lists(change, max_size=4), st.none() | st.integers(0, len(data)))


def one_line(error: BaseException, path: Path) -> None:
    """Check that an error names the file and is a message for people."""
    assert str(path) in str(error)
    assert "Traceback" not in str(error)


# ----------------------------------------------------------------------------------------------------------------
# Files

RECORDS = b">A desc\nMKTAYIAKQR\nQISFVK\n>sp|P12345|NAME x\nmkvlat*\n>C\nMKX-U\n"


@fuzzed(400)
@given(
    data=st.one_of(damages(RECORDS), st.binary(max_size=60), st.text(">ACDx*\n\r \t|1é", max_size=60).map(str.encode))
)
def test_fasta(tmp_path, data):
    path = tmp_path / "f.fasta"
    path.write_bytes(data)
    try:
        found = draw([path], size=9, seed=1, min_length=1, max_length=50, at_most=True)
    except SourceError as error:
        return one_line(error, path)
    n_records = sum(len(batch) for batch in raw_batches(path))
    assert sum(found.counts.values()) == n_records
    assert all(set(sequence) <= set(AMINO_ACIDS) for sequence in found.columns["sequence"])
    assert all(name.isprintable() for name in found.columns["sequence_id"])


@pytest.mark.parametrize("text, name, n", [(PDB.encode(), "s.pdb", 150), (CIF, "s.cif", 50)])
def test_structures(tmp_path, text, name, n):
    path = tmp_path / name

    @fuzzed(n)
    @given(data=damages(text))
    def run(data):
        path.write_bytes(data)
        try:
            chain = read_chain(path)
        except SourceError as error:
            return one_line(error, path)
        assert len(chain.sequence) == len(chain.coordinates) >= len(chain.observed) > 0

    run()


@fuzzed(250)
@given(data=st.data())
def test_safetensors_headers(tmp_path, data):
    whole = (FIXTURES / "esm2" / "hub" / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    head = data.draw(damages(whole[: 8 + size]))
    path = tmp_path / "model.safetensors"
    path.write_bytes(head + whole[8 + size :])
    try:
        tensors = checkpoints.read_safetensors(path)
    except CheckpointError as error:
        return one_line(error, path)
    assert all(tensor.numel() >= 0 for tensor in tensors.values())


@fuzzed(150)
@given(
    data=st.one_of(
        damages((FIXTURES / "esm2" / "hub" / "config.json").read_bytes()),
        st.dictionaries(
            st.sampled_from(["num_hidden_layers", "hidden_size", "vocab_size", "model_type"]),
            st.one_of(st.integers(), st.floats(), TEXT, st.none(), st.booleans()),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_configs_of_checkpoints(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    try:
        config = checkpoints.read_config(path)
    except CheckpointError as error:
        return one_line(error, path)
    assert isinstance(config.get("hidden_size", 1), int | None)


@fuzzed(100)
@given(data=st.data())
def test_tables(tmp_path, data):
    path = tmp_path / "t.parquet"
    write_table({"reason": ["sampled", "too_long"], "n_records": [3, 4]}, LEFT_OUT, path)
    path.write_bytes(data.draw(damages(path.read_bytes())))
    try:
        table = read_table(path, LEFT_OUT)
    except TableError as error:
        return one_line(error, path)
    assert table.num_rows >= 0


@fuzzed(60)
@given(data=st.data())
def test_archives(tmp_path, data):
    import io
    import tarfile

    names = data.draw(st.lists(st.one_of(HOSTILE, st.just("a/config.json")), min_size=1, max_size=3))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    (tmp_path / "a.tar").write_bytes(data.draw(damages(buffer.getvalue())))
    folder = tmp_path / "in" / "folder"
    try:
        unpack(tmp_path / "a.tar", folder, most_bytes=10**6)
    except DownloadError as error:
        one_line(error, tmp_path / "a.tar")
        assert not folder.exists()
    except OSError as error:  # of the disk: a name that it does not take
        assert error.errno is not None and not folder.exists()
    beside = {path for path in tmp_path.rglob("*") if folder not in [path, *path.parents]}
    assert beside <= {tmp_path / "a.tar", tmp_path / "in"}


@fuzzed(100)
@given(data=st.one_of(damages(b'{"repo":"a/b","files":{"x":{"bytes":1,"sha256":"0"}}}'), st.binary(max_size=20)))
def test_manifests(tmp_path, data):
    (tmp_path / manifest.MANIFEST).write_bytes(data)
    try:
        manifest.read(tmp_path)
    except DownloadError as error:
        one_line(error, tmp_path)


# ----------------------------------------------------------------------------------------------------------------
# The config and its sheet

SHEET = (ROOT / "config" / "models.tsv").read_bytes()
SHEET = SHEET[SHEET.index(b"model\tdisplay_name") :][:2500]


@fuzzed(100)
@given(data=damages(SHEET))
def test_the_sheet_of_models(tmp_path, data):
    path = tmp_path / "models.tsv"
    path.write_bytes(data)
    try:
        rows = read_models(path)
    except ConfigError as error:
        return one_line(error, path)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) for name in rows)


ODD = st.recursive(
    st.one_of(TEXT, st.integers(), st.floats(), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Return the path of every value in a config."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in inside for place in places(inner, (*path, key)))]


PLACES = [place for place in places(yaml.safe_load(CONFIG)) if place]


@fuzzed(80)
@given(place=st.sampled_from(PLACES), value=ODD)
def test_the_config(place, value):
    config = yaml.safe_load(CONFIG)
    at = config
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    try:
        study = resolved(config)
    except ConfigError as error:
        assert "Traceback" not in str(error)
        return
    names = [study.config["study"], *study.models, *study.datasets, *study.sources]
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) for name in names)


# ----------------------------------------------------------------------------------------------------------------
# Options and ids


@fuzzed(300)
@given(text=st.one_of(st.text(max_size=40), ODD.map(lambda value: json.dumps(value, default=str)), st.just("[" * 9999)))
def test_options_in_json(text):
    try:
        value = json_text.parse(text)
    except json.JSONDecodeError:
        value = None
    assert len(json_text.shown(text)) < 1000

    def read_skips(text: str) -> Skips:
        return read_settings(Skips, text, "--skips")

    with_errors = ((parse_nulls, NullError), (read_skips, SettingsError), (read_recipe, RecipeError))
    for parse, expected in with_errors:
        try:
            found = parse(text)
        except expected:
            continue
        if parse is read_skips:
            assert isinstance(found, Skips) and set(value) <= {f.name for f in dataclasses.fields(Skips)}
        if parse is parse_nulls:
            assert all(isinstance(null, Null) for null in found)


@fuzzed(300)
@given(
    objective=st.sampled_from(["ar", "mlm", "diffusion"]),
    inputs=st.fixed_dictionaries(
        {"mlm": st.fixed_dictionaries({"noise": ODD, "draws": ODD, "clean": ODD}), "diffusion": ODD, "ar": ODD}
    ),
)
def test_views(objective, inputs):
    try:
        views = views_of(objective, inputs)
    except (ValueError, KeyError, TypeError):
        return
    assert all(isinstance(view, View) for view in views)
    assert all(view.reads in ("next", "masked", "visible") for view in views)
    assert all(0 < view.noise_t <= 1 for view in views if view.reads == "masked")


@fuzzed(300)
@given(text=TEXT, source=st.sampled_from(["pdb", "alphafold", "folder"]))
def test_ids_of_structures_never_climb_out_or_hold_a_command(text, source):
    try:
        name, chain = parse_entry(text, source)
    except SourceError:
        return
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) and name not in (".", "..")
    assert chain is None or re.fullmatch(r"[A-Za-z0-9]{1,4}", chain)


@fuzzed(150)
@given(entries=st.lists(TEXT, min_size=1, max_size=2), url=st.one_of(TEXT, st.just("https://h/{id}.cif")))
def test_downloads_of_structures_lie_in_their_folder(entries, url):
    try:
        found = entries_of({"source": "pdb", "entries": entries, "url": url})
    except SourceError:
        return
    for entry in found:
        assert re.fullmatch(r"resources/downloads/structures/[A-Za-z0-9._-]+", entry.path), entry.path


@fuzzed(150)
@given(name=st.one_of(HOSTILE, st.text(max_size=12), st.just("sub/model.safetensors")))
def test_files_of_a_repository_lie_in_its_folder(name):
    import logging

    try:
        chosen = choose([File(name, 1, None, None)], ["*"], {}, logging.getLogger("fuzz"))
    except DownloadError:
        return
    for file in chosen:
        parts = Path(file.name).parts
        assert ".." not in parts and not Path(file.name).is_absolute() and "\0" not in file.name


@fuzzed(60)
@given(name=TEXT)
def test_accessions_of_any_kind_pass_through_a_table_unchanged_or_are_refused(tmp_path, name):
    path = tmp_path / "f.fasta"
    path.write_bytes(b">" + name.encode("utf-8", "surrogatepass") + b"\nMKTAY\n")
    try:
        drawn = draw([path], size=1, seed=1, min_length=1, max_length=50)
    except SourceError as error:
        return one_line(error, path)
    write_table(drawn.columns, SEQUENCES, tmp_path / "s.parquet")
    (found,) = read_table(tmp_path / "s.parquet", SEQUENCES).column("sequence_id").to_pylist()
    assert name.startswith(found) or found in name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.fasta", "s.parquet"]
